"""Slot layers that follow the paper, compared with a loop over steps, heads and slots."""

import math
from typing import Any

import pytest
import torch

from scrubjay import memory

from ..oracles import beside_oracles


def rotate(x, place):
    """Return a vector whose two halves are the coordinates of its rotary pairs."""
    half, result = len(x) // 2, x.clone()
    for i in range(half):
        cos, sin = (f(place * 10_000.0 ** (-i / half)) for f in (math.cos, math.sin))
        result[i], result[half + i] = x[i] * cos - x[half + i] * sin, x[half + i] * cos + x[i] * sin
    return result


class Episode:
    """Reference for one batch row, from the authors' description: slots are read, then one is blended."""

    def __init__(self, module):
        self.module, self.config = module, module.config
        self.restart()

    def restart(self):
        self.time = 0
        self.slots = [layer.initial_slots.clone() for layer in self.module.layers]
        self.write_steps = [[-1] * self.config.num_slots for _ in self.module.layers]
        self.inputs, self.outputs = ([[] for _ in self.module.layers] for _ in range(2))

    def step(self, x):
        for index, layer in enumerate(self.module.layers):
            norms, slots = layer.norms, self.slots[index]
            self.inputs[index].append(x)
            x = norms["attention"](x + self.attend_chunk(layer, self.inputs[index]))
            distances = [self.time - step for step in self.write_steps[index]]
            x = norms["read"](x + self.attend(layer, "read", x, list(slots), distances))
            x = norms["feed_forward"](x + layer.feed_forward(x))
            self.outputs[index].append(x)
            if len(self.outputs[index]) == self.config.chunk_size:
                self.write(index, layer)
        self.time += 1
        return x

    def write(self, index, layer):
        write_steps = self.write_steps[index]
        target = write_steps.index(min(write_steps))  # the first empty slot, or that of the oldest write
        old, outputs = self.slots[index][target], self.outputs[index]
        first = self.time - len(outputs) + 1
        distances = [write_steps[target] - step for step in range(first, self.time + 1)]
        new = layer.norms["write"](old + self.attend(layer, "write", old, outputs, distances))
        new = layer.norms["write_feed_forward"](new + layer.write_feed_forward(new))
        self.slots[index][target] = self.config.blend * new + (1 - self.config.blend) * old
        write_steps[target] = self.time
        self.inputs[index], self.outputs[index] = [], []

    def attend(self, layer, kind, x, items, distances):
        query, key, value, out = (
            getattr(layer, f"{kind}_{part}") for part in ("query", "key", "value", "out")
        )
        reads, limit = [], self.config.max_distance - 1
        for h in range(layer.heads):
            scores = []
            for item, distance in zip(items, distances, strict=True):
                q, k = (part.view(layer.heads, -1)[h] for part in (query(x), key(item)))
                bias = layer.distance_bias[h, max(-limit, min(limit, distance)) + limit]
                scores.append(q @ k / len(q) ** 0.5 + bias)
            weights = torch.softmax(torch.stack(scores), dim=0)
            values = torch.stack([value(item).view(layer.heads, -1)[h] for item in items])
            reads.append(weights @ values)
        return out(torch.cat(reads))

    def attend_chunk(self, layer, inputs):
        reads = []
        for h in range(layer.heads):
            keys = [rotate(layer.key(x).view(layer.heads, -1)[h], i) for i, x in enumerate(inputs)]
            query = rotate(layer.query(inputs[-1]).view(layer.heads, -1)[h], len(inputs) - 1)
            weights = torch.softmax(torch.stack([query @ key / len(key) ** 0.5 for key in keys]), dim=0)
            reads.append(weights @ torch.stack([layer.value(x).view(layer.heads, -1)[h] for x in inputs]))
        return layer.out(torch.cat(reads))


@torch.no_grad()
@pytest.mark.parametrize(
    "sizes",
    [
        {"chunk_size": 3, "num_slots": 2, "max_distance": 7, "num_layers": 2},
        {"chunk_size": 2, "num_slots": 4, "blend": 0.9},
        {"chunk_size": 1, "num_slots": 1, "blend": 1.0},
    ],
    ids=str,
)
def test_the_paper_reads_all_slots_and_blends_every_write(sizes):
    torch.manual_seed(0)
    module: Any = memory.make("elmur", paper=True, dim=8, num_heads=2, **sizes).double()
    state, oracles = beside_oracles(
        module, lambda: Episode(module), time=40, cuts=[5, 6, 21], start_rate=0.05, tolerance=1e-6
    )
    for row, oracle in enumerate(oracles):
        for index, slots in enumerate(oracle.slots):
            torch.testing.assert_close(state[f"slots_{index}"][row], slots, rtol=0, atol=1e-6)


def test_initial_slots_are_random_and_saved_with_the_weights():
    torch.manual_seed(0)
    first, second = (memory.make("elmur", paper=True, dim=8) for _ in range(2))
    slots = first.initial_state(2)["slots_0"]
    assert torch.equal(slots[0], slots[1])
    assert 0.01 < slots[0].std() < 0.03
    assert not torch.equal(slots, second.initial_state(2)["slots_0"])
    second.load_state_dict(first.state_dict())
    assert torch.equal(slots, second.initial_state(2)["slots_0"])


def test_slots_that_would_never_change_are_refused():
    with pytest.raises(ValueError, match="blend=0 with follow_paper: slots would never change"):
        memory.make("elmur", paper=True, blend=0)
    with pytest.raises(ValueError, match="max_distance=0: must be at least 1"):
        memory.make("elmur", max_distance=0)

"""Tests of ELMUR against naive loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory.contract.check import check_memory
from scrubjay.memory.sparse.elmur import ELMURConfig

from ..oracles import beside_oracles


def rotate(x, place):
    half, out = len(x) // 2, x.clone()
    for i in range(half):
        angle = place * 10_000.0 ** (-i / half)
        out[i] = x[i] * math.cos(angle) - x[half + i] * math.sin(angle)
        out[half + i] = x[half + i] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def attend(query, keys, values, bias):
    """Return the attention of one head over lists."""
    scores = [query @ key * len(query) ** -0.5 + extra for key, extra in zip(keys, bias, strict=True)]
    weights = torch.softmax(torch.stack(scores), dim=0)
    return weights @ torch.stack(values)


class Oracle:
    """Reference for one batch row and one step at a time: slots are pairs of content and write step."""

    def __init__(self, module):
        self.module, self.config = module, module.config
        self.restart()

    def restart(self):
        self.time = 0
        self.own = [[] for _ in self.module.layers]
        self.out = [[] for _ in self.module.layers]
        self.slots = [[] for _ in self.module.layers]

    def step(self, x):
        full = (self.time + 1) % self.config.chunk_size == 0
        for layer, own, out, slots in zip(self.module.layers, self.own, self.out, self.slots, strict=True):
            x = self.attend_chunk(layer, x, own)
            x = x + self.read(layer, x, slots)
            x = x + layer.feed_forward(x)
            out.append(x)
            if full:
                self.write(layer, out, slots)
                own.clear()
                out.clear()
        self.time += 1
        return x

    def attend_chunk(self, layer, x, own):
        place, normed_x = len(own), layer.norm(x)
        query, key, value = (
            part(normed_x).view(layer.heads, -1) for part in (layer.query, layer.key, layer.value)
        )
        own.append(([rotate(head, place) for head in key], value))
        read = [
            attend(
                rotate(query[h], place),
                [keys[h] for keys, _ in own],
                [values[h] for _, values in own],
                [0.0] * len(own),
            )
            for h in range(layer.heads)
        ]
        return x + layer.out(torch.cat(read))

    def read(self, layer, x, slots):
        if not slots:
            return torch.zeros_like(x)
        contents = [layer.slot_norm(content) for content, _ in slots]
        buckets = [int(math.log2(max(self.time - write_step, 1))) for _, write_step in slots]
        query = layer.read_query(layer.read_norm(x)).view(layer.heads, -1)
        read = [
            attend(
                query[h],
                [layer.read_key(content).view(layer.heads, -1)[h] for content in contents],
                [layer.read_value(content).view(layer.heads, -1)[h] for content in contents],
                [layer.read_bias[h, bucket] for bucket in buckets],
            )
            for h in range(layer.heads)
        ]
        return layer.read_out(torch.cat(read))

    def write(self, layer, steps, slots):
        oldest = min(range(len(slots)), key=lambda i: slots[i][1], default=None)
        empty = len(slots) < self.config.num_slots
        old = torch.zeros_like(steps[0]) if empty else slots[oldest][0]
        query = layer.write_query(layer.write_norm(old + layer.asker)).view(layer.heads, -1)
        steps = [layer.step_norm(step) for step in steps]
        read = [
            attend(
                query[h],
                [layer.write_key(step).view(layer.heads, -1)[h] for step in steps],
                [layer.write_value(step).view(layer.heads, -1)[h] for step in steps],
                list(layer.write_bias[h]),
            )
            for h in range(layer.heads)
        ]
        new = old + layer.write_out(torch.cat(read))
        new = layer.written_norm(new + layer.write_feed_forward(new))
        if empty:
            slots.append((new, self.time))
        else:
            blend = self.config.blend
            slots[oldest] = (blend * new + (1 - blend) * old, self.time)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    chunk_size=st.integers(1, 4),
    num_slots=st.integers(1, 4),
    blend=st.sampled_from([0.0, 0.3, 1.0]),
    num_layers=st.integers(1, 2),
    time=st.integers(1, 40),
    cuts=st.sets(st.integers(1, 39), max_size=4),
    start_rate=st.sampled_from([0.0, 0.1, 0.5]),
)
@torch.no_grad()
def test_any_cut_any_start_any_rewriting_equals_the_oracle(
    seed, chunk_size, num_slots, blend, num_layers, time, cuts, start_rate
):
    torch.manual_seed(seed)
    sizes = {"chunk_size": chunk_size, "num_slots": num_slots, "num_layers": num_layers}
    module = ELMURConfig(dim=8, num_heads=2, blend=blend, **sizes).build().double()
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    state, oracles = beside_oracles(module, lambda: Oracle(module), time, cuts, start_rate, 1e-6)
    for row, oracle in enumerate(oracles):
        for layer, slots in enumerate(oracle.slots):
            slot_contents = state[f"slots_{layer}"][row]
            for slot in range(num_slots):
                expected = slots[slot][0] if slot < len(slots) else torch.zeros(8, dtype=torch.float64)
                torch.testing.assert_close(slot_contents[slot], expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_without_blending_the_first_chunks_stay_for_good():
    torch.manual_seed(0)
    module = ELMURConfig(dim=8, chunk_size=3, num_slots=4, blend=0.0).build()
    x = torch.randn(2, 300, 8)
    _, early = module(x[:, :12], module.initial_state(2))
    _, late = module(x[:, 12:], early)
    torch.testing.assert_close(late["slots_0"], early["slots_0"])
    assert (early["slots_0"] != 0).any(-1).all()


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("seed", range(3))
def test_what_is_full_for_good_is_no_breach_of_law_9(seed):
    module = ELMURConfig(dim=16, chunk_size=2, num_slots=2, blend=0.0).build()
    assert check_memory(module, laws=[9], seed=seed) == []


@pytest.mark.slow
@torch.no_grad()
def test_slots_stay_small_however_often_they_are_rewritten():
    torch.manual_seed(0)
    module = ELMURConfig(dim=8, chunk_size=1, num_slots=2).build()
    _, state = module(torch.randn(1, 5000, 8), module.initial_state(1))
    assert state["slots_0"].norm(dim=-1).max() <= 8**0.5 * 1.01


def test_gradients_reach_what_was_written_chunks_ago():
    torch.manual_seed(0)
    module = ELMURConfig(dim=16, chunk_size=4, num_slots=16).build()
    x = torch.randn(1, 60, 16, requires_grad=True)
    y, _ = module(x, module.initial_state(1))
    (y[0, -1] ** 2).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_slots": 0}, "num_slots=0: must be at least 1"),
        ({"blend": 1.5}, "blend=1.5: must be from 0 to 1"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
    ],
)
def test_sizes_that_cannot_work_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ELMURConfig(dim=16, **fields)

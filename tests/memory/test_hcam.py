"""HCAM against a naive oracle of lists."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scrubjay import memory
from scrubjay.memory.hcam import HCAMConfig
from scrubjay.memory.parts.layers import sinusoids

from .oracles import beside_oracles


class Oracle:
    """Reference for one row, one step at a time, with Python lists of chunks, without masks or batching."""

    def __init__(self, module):
        self.module, self.config = module, module.config
        self.restart()

    def restart(self):
        layers = len(self.module.blocks)
        self.past = [[] for _ in range(layers)]
        self.chunks = [[] for _ in range(layers)]

    def step(self, x):
        for layer, block in enumerate(self.module.blocks):
            normalized = block.local_norm(x)
            x = x + self.local(block, normalized, self.past[layer][-self.module.window :])
            read = self.read(block, block.read_norm(x), self.chunks[layer])
            x = read if self.config.bottleneck else x + read
            x = x + block.feed_forward(x)
            self.past[layer].append(normalized)
            if len(self.past[layer]) % self.config.chunk_size == 0:
                chunk = torch.stack(self.past[layer][-self.config.chunk_size :])
                self.chunks[layer] = [*self.chunks[layer], chunk][-self.config.num_chunks :]
        return x

    @staticmethod
    def local(block, normalized, past):
        attention = block.local
        heads = attention.num_heads
        visible = [*past, normalized]
        distances = sinusoids(torch.arange(len(visible)), len(normalized)).float().to(normalized)
        head_dim = len(normalized) // heads
        reads = []
        for h in range(heads):
            part = slice(h * head_dim, (h + 1) * head_dim)
            query = attention.query(normalized)[part]
            logits = torch.stack(
                [
                    (query + attention.content_bias[h]) @ attention.key(item)[part]
                    + (query + attention.position_bias[h])
                    @ attention.position(distances[len(visible) - 1 - i])[part]
                    for i, item in enumerate(visible)
                ]
            )
            weights = torch.softmax(logits / math.sqrt(head_dim), dim=0)
            reads.append(
                sum(w * attention.value(item)[part] for w, item in zip(weights, visible, strict=True))
            )
        return attention.output(torch.cat(reads))

    @staticmethod
    def read(block, query, chunks):
        if not chunks:
            return torch.zeros_like(query)
        dim, heads = len(query), block.num_heads
        head_dim = dim // heads
        scores = [
            float(block.summary_query(query) @ block.summary_key(chunk.mean(dim=0)) / math.sqrt(dim))
            for chunk in chunks
        ]
        best = sorted(range(len(chunks)), key=lambda i: (-scores[i], i))[: block.top_k]
        relevance = torch.softmax(torch.tensor([scores[i] for i in best], dtype=query.dtype), dim=0)
        total = torch.zeros(dim, dtype=query.dtype)
        for weight, i in zip(relevance, best, strict=True):
            content = chunks[i] + block.positions
            for h in range(heads):
                part = slice(h * head_dim, (h + 1) * head_dim)
                logits = block.key(content)[:, part] @ block.query(query)[part] / math.sqrt(head_dim)
                total[part] += weight * (torch.softmax(logits, dim=0) @ block.value(content)[:, part])
        return block.out(total)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    chunk_size=st.integers(1, 5),
    num_chunks=st.integers(1, 4),
    top_k=st.integers(1, 5),
    num_layers=st.integers(1, 2),
    extra_window=st.integers(0, 3),
    time=st.integers(1, 30),
    cuts=st.sets(st.integers(1, 29), max_size=4),
    start_rate=st.sampled_from([0.0, 0.1, 0.5]),
    bottleneck=st.booleans(),
)
@torch.no_grad()
def test_any_cut_any_start_any_eviction_equals_the_oracle(
    seed, chunk_size, num_chunks, top_k, num_layers, extra_window, time, cuts, start_rate, bottleneck
):
    assume(not bottleneck or max(chunk_size, min(num_chunks, top_k)) > 1)
    torch.manual_seed(seed)
    module = memory.make(
        "hcam",
        dim=8,
        chunk_size=chunk_size,
        num_chunks=num_chunks,
        top_k=top_k,
        num_layers=num_layers,
        window=chunk_size + extra_window,
        bottleneck=bottleneck,
    ).double()
    state, oracles = beside_oracles(module, lambda: Oracle(module), time, cuts, start_rate, 1e-9)
    for row, oracle in enumerate(oracles):
        for layer, chunks in enumerate(oracle.chunks):
            contents = state[f"contents_{layer}"][row]
            empty = num_chunks - len(chunks)
            assert (contents[:empty] == 0).all()
            for slot, chunk in enumerate(chunks):
                torch.testing.assert_close(contents[empty + slot], chunk, rtol=1e-9, atol=1e-9)


def test_unwritten_slots_have_no_effect_on_a_segment():
    torch.manual_seed(3)
    module = HCAMConfig(dim=8, chunk_size=4, num_chunks=5).build()
    x, age = torch.randn(3, 30, 8), torch.tensor([0, 6, 17])
    start = torch.zeros(3, 20, dtype=torch.bool)
    start[torch.arange(3), 20 - age.clamp(min=1)] = True
    _, state = module(torch.randn(3, 20, 8), module.initial_state(3), start)
    state["time"] = age
    clean = module._zero_unwritten(state)
    whole = module(x, clean)
    for junk in (3.0, 1e20, math.inf, math.nan):
        dirty = {
            name: value if name == "time" else torch.where(clean[name] == 0, junk, clean[name])
            for name, value in state.items()
        }
        y, after = module(x, dirty)
        torch.testing.assert_close(y, whole[0])
        for name, value in after.items():
            torch.testing.assert_close(value, whole[1][name])


def test_stored_contents_stop_gradients_unless_asked():
    torch.manual_seed(0)
    for stop in (True, False):
        module = memory.make("hcam", dim=8, chunk_size=2, num_chunks=4, window=2, stop_memory_gradient=stop)
        x = torch.randn(1, 12, 8, requires_grad=True)
        y, _ = module(x, module.initial_state(1))
        y[0, -1].sum().backward()
        assert x.grad is not None
        # The local window reaches two steps back; earlier steps are read from the store.
        has_gradient = x.grad[0].abs().sum(dim=-1) > 0
        assert has_gradient[-3:].all()
        assert has_gradient[:8].any().item() is not stop


def test_a_bottleneck_passes_on_the_chosen_chunks_alone():
    torch.manual_seed(0)
    sizes = {"chunk_size": 3, "num_chunks": 6, "top_k": 2, "stop_memory_gradient": False}
    module = HCAMConfig(dim=8, bottleneck=True, **sizes).build()
    _, state = module(torch.randn(1, 18, 8), module.initial_state(1))
    query = torch.randn(1, 8)
    is_read = module.recall(query, state).reads["chunks, layer 0"].weights.view(6, 3).sum(1) > 0
    assert is_read.sum() == 2
    state["contents_0"].requires_grad_()
    y, _ = module.step(query, state)
    (gradient,) = torch.autograd.grad(y.square().sum(), state["contents_0"])
    assert torch.equal(gradient[0].abs().sum((1, 2)) > 0, is_read)
    # Window and input form the query, but are not passed on themselves.
    no_read = module.step(query, module.initial_state(1))[0]
    assert torch.equal(no_read, module.step(-3 * query, module.initial_state(1))[0])
    # With all chunks selected it is attention over all stored steps.
    whole = HCAMConfig(dim=8, chunk_size=1, num_chunks=9, top_k=9, bottleneck=True).build()
    x = torch.randn(1, 9, 8)
    y, state = whole(x, whole.initial_state(1))
    block = whole._layers[0]
    normalized_query = block.read_norm(
        x[:, -1]
        + block.local.step(block.local_norm(x[:, -1]), block.local_norm(x[:, -2:-1]), torch.tensor([8]))
    )
    contents = block.local_norm(x[0, :-1])
    weights = torch.softmax(
        block.summary_key(contents) @ block.summary_query(normalized_query)[0] / 8**0.5, dim=0
    )
    read = block.out(weights @ block.value(contents + block.positions))
    torch.testing.assert_close(y[0, -1], read + block.feed_forward(read))


def test_read_is_zero_until_a_chunk_is_complete():
    module = HCAMConfig(dim=8, chunk_size=4).build()
    x = torch.randn(2, 4, 8)
    _, state = module(x[:, :3], module.initial_state(2))
    assert (module.read(x, state) == 0).all()
    _, state = module(x[:, 3:], state)
    assert (module.read(x, state) != 0).any(dim=-1).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"num_chunks": -1}, "num_chunks=-1"),
        ({"top_k": 0}, "top_k=0"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"chunk_size": 8, "window": 7}, "window=7 is shorter than chunk_size=8"),
        ({"chunk_size": 1, "top_k": 1, "bottleneck": True}, "every query would read the same step"),
    ],
)
def test_impossible_sizes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        memory.make("hcam", dim=8, **fields)


def test_state_bytes_formula():
    module = memory.make("hcam", dim=16, chunk_size=4, num_chunks=6, num_layers=2, window=5)
    floats = 2 * (6 * 4 * 16 + 6 * 16 + 5 * 16)
    assert module.state_bytes(3) == 3 * (4 * floats + 8)

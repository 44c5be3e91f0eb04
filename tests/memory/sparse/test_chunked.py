"""Tests of memories with selected chunks against naive loops and the authors' functions."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay import memory
from scrubjay.kernels import merge
from scrubjay.memory.sparse.chunked import ChunkedMemory, StoredChunks
from scrubjay.memory.sparse.local_chunk import attend_own_chunk

from ..oracles import beside_oracles

NAMES = ["landmark", "moba"]
PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())


def make(name, **sizes):
    module = memory.make(name, **sizes)
    assert isinstance(module, ChunkedMemory)
    return module


def rotate(x, place):
    """Return a head rotated by its position, pair by pair."""
    half, out = len(x) // 2, x.clone()
    for i in range(half):
        angle = place * 10_000.0 ** (-i / half)
        out[i] = x[i] * math.cos(angle) - x[half + i] * math.sin(angle)
        out[half + i] = x[half + i] * math.cos(angle) + x[i] * math.sin(angle)
    return out


class Oracle:
    """Reference for one batch row and one step at a time: lists of chunks and heads, no masks."""

    def __init__(self, module, name):
        self.module, self.name, self.config = module, name, module.config
        self.restart()

    def restart(self):
        self.own = [[] for _ in self.module.layers]
        self.chunks = [[] for _ in self.module.layers]

    def step(self, x):
        full = len(self.own[0]) + 1 == self.config.chunk_size
        landmark = getattr(self.module, "landmark", None)
        for layer, own, chunks in zip(self.module.layers, self.own, self.chunks, strict=True):
            place, size, normed_x = len(own), self.config.chunk_size, layer.norm(x)
            queries, keys, values = (
                part(normed_x).view(layer.heads, -1) for part in (layer.query, layer.key, layer.value)
            )
            own.append(([rotate(key, place) for key in keys], values))
            stored_chunks = chunks[-self.config.num_chunks :]
            read = [
                self.head(h, rotate(query, place), rotate(query, place + size), own, stored_chunks)
                for h, query in enumerate(queries)
            ]
            x = x + layer.out(torch.cat(read))
            x = x + layer.feed_forward(x)
            if full:
                summary, landmark = self.summary(layer, own, landmark)
                chunks.append((list(own), summary))
                own.clear()
        return x

    def head(self, h, query, far_query, own, chunks):
        scale = len(query) ** -0.5
        scores = [float(far_query @ summary[h]) for _, summary in chunks]
        best = sorted(range(len(chunks)), key=lambda i: (-scores[i], i))[: self.config.top_k]
        logits = [query @ keys[h] * scale for keys, _ in own]
        items = [values[h] for _, values in own]
        for i in best:
            steps, summary = chunks[i]
            inside = torch.stack([far_query @ keys[h] * scale for keys, _ in steps])
            content = torch.stack([values[h] for _, values in steps])
            if self.name == "moba":
                logits += list(inside)
                items += list(content)
            else:
                logits.append(far_query @ summary[h] * scale)
                items.append(torch.softmax(inside, 0) @ content)
        return torch.softmax(torch.stack(logits), 0) @ torch.stack(items)

    def summary(self, layer, own, landmark):
        if self.name == "moba":
            return [sum(keys[h] for keys, _ in own) / len(own) for h in range(layer.heads)], None
        behind, read = self.config.chunk_size, []
        for h, query in enumerate(layer.query(layer.norm(landmark)).view(layer.heads, -1)):
            logits = torch.stack([rotate(query, behind) @ keys[h] * len(query) ** -0.5 for keys, _ in own])
            read.append(torch.softmax(logits, 0) @ torch.stack([values[h] for _, values in own]))
        landmark = landmark + layer.out(torch.cat(read))
        keys = layer.key(layer.norm(landmark)).view(layer.heads, -1)
        return [rotate(key, behind) for key in keys], landmark + layer.feed_forward(landmark)


@pytest.mark.one_in(2, rest="slow")
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    chunk_size=st.integers(1, 5),
    num_chunks=st.integers(1, 4),
    top_k=st.integers(1, 5),
    num_layers=st.integers(1, 2),
    time=st.integers(1, 40),
    cuts=st.sets(st.integers(1, 39), max_size=4),
    start_rate=st.sampled_from([0.0, 0.1, 0.5]),
)
@torch.no_grad()
def test_any_cut_any_start_any_eviction_equals_the_oracle(
    name, seed, chunk_size, num_chunks, top_k, num_layers, time, cuts, start_rate
):
    torch.manual_seed(seed)
    sizes = {"chunk_size": chunk_size, "num_chunks": num_chunks, "top_k": top_k, "num_layers": num_layers}
    module = make(name, dim=8, num_heads=2, **sizes).double()
    beside_oracles(module, lambda: Oracle(module, name), time, cuts, start_rate, 1e-6)


def load_published(name):
    return {part: torch.tensor(x)[None] for part, x in PUBLISHED[name].items() if part != "source"}


def without_positions(name, **sizes):
    layer = make(name, dim=8, num_heads=2, **sizes).layers[0]
    layer.cos.fill_(1.0)
    layer.sin.zero_()
    return layer


def test_landmarks_read_as_their_authors_grouped_softmax_does():
    data = load_published("landmark")
    size = data["keys"].shape[2]
    layer = without_positions("landmark", chunk_size=size, top_k=9)
    queries = data["query"].shape[1]
    readable = torch.ones(1, queries, data["keys"].shape[1], dtype=torch.bool)
    far = layer.choose(data["query"], StoredChunks(data["keys"], data["values"], data["landmarks"], readable))
    own_keys, own_values = (
        torch.nn.functional.pad(data[f"own_{part}"].flatten(2), (0, 0, size, 0))
        for part in ("keys", "values")
    )
    own = attend_own_chunk(data["query"], own_keys, own_values, torch.arange(queries)[None], size)
    torch.testing.assert_close(merge([own, far]), data["read"], rtol=1e-6, atol=1e-6)


def test_moba_reads_as_its_authors_naive_function_does():
    data, size = load_published("moba"), 4
    layer = without_positions("moba", chunk_size=size, top_k=1)
    time = data["query"].shape[1]
    full = time // size * size
    keys, values = (data[part][:, :full].unflatten(1, (-1, size)) for part in ("keys", "values"))
    steps = torch.arange(time)
    readable = (torch.arange(full // size) < (steps // size)[:, None])[None]
    summaries, _ = layer.summarise(keys, values, None)
    far = layer.choose(data["query"], StoredChunks(keys, values, summaries, readable))
    own_keys, own_values = (
        torch.nn.functional.pad(data[part].flatten(2), (0, 0, size, 0)) for part in ("keys", "values")
    )
    own = attend_own_chunk(data["query"], own_keys, own_values, (steps % size)[None], size)
    torch.testing.assert_close(merge([own, far]), data["read"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_what_was_stored_long_ago(name):
    torch.manual_seed(0)
    module = make(name, dim=16, chunk_size=4, num_chunks=20, top_k=20)
    x = torch.randn(1, 60, 16, requires_grad=True)
    y, _ = module(x, module.initial_state(1))
    (y[0, -1] ** 2).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_weights_fit_every_number_of_chosen_chunks(name):
    torch.manual_seed(1)
    few, all_of_them = (make(name, dim=16, chunk_size=3, num_chunks=8, top_k=k) for k in (2, 8))
    all_of_them.load_state_dict(few.state_dict())
    x = torch.randn(2, 40, 16)
    y, state = few(x, few.initial_state(2))
    z, _ = all_of_them(x, all_of_them.initial_state(2))
    torch.testing.assert_close(y[:, :9], z[:, :9])  # up to two chunks
    assert not torch.allclose(y, z)
    assert (few.read(x, few.initial_state(2)) == 0).all()
    assert (few.read(x, state) != 0).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk_size": 0}, "chunk_size=0: must be at least 1"),
        ({"top_k": -1}, "top_k=-1: must be at least 1"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
    ],
)
def test_sizes_that_cannot_work_are_named(name, fields, message):
    with pytest.raises(ValueError, match=message):
        memory.make_config(name, dim=16, **fields)

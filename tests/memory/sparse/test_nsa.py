"""Tests of native sparse attention against published naive functions, and of its gates."""

import json
from pathlib import Path

import torch
from torch.nn import functional

from scrubjay.kernels import merge
from scrubjay.memory.sparse.chunked import StoredChunks
from scrubjay.memory.sparse.local_chunk import attend_own_chunk
from scrubjay.memory.sparse.nsa import NSAConfig, NSALayer

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())["nsa"]


def test_streams_are_those_of_naive_functions():
    data = {name: torch.tensor(x)[None] for name, x in PUBLISHED.items() if name != "source"}
    size, (time, heads, width) = 3, data["query"].shape[1:]
    layer = NSALayer(NSAConfig(dim=heads * width, num_heads=heads, chunk_size=size, top_k=3))
    layer.cos.fill_(1.0)
    layer.sin.zero_()
    full = time // size
    keys, values = (data[part].expand(-1, -1, heads, -1) for part in ("keys", "values"))
    summaries = torch.cat([data["compressed_keys"], data["compressed_values"]], dim=-1)
    step = torch.arange(time)
    readable = (torch.arange(full) < (step // size)[:, None])[None]
    chunk_keys, chunk_values = (part[:, : full * size].unflatten(1, (-1, size)) for part in (keys, values))
    chunks = StoredChunks(chunk_keys, chunk_values, summaries.expand(-1, -1, heads, -1), readable)
    compressed_out, selected_read = layer.streams(data["query"], chunks)
    own_keys, own_values = (functional.pad(part.flatten(2), (0, 0, size, 0)) for part in (keys, values))
    own = attend_own_chunk(data["query"], own_keys, own_values, (step % size)[None], size)
    # The published function reads a compressed chunk from its last step on, this memory from the next step
    # on.
    same = step % size != size - 1
    torch.testing.assert_close(compressed_out[:, same], data["compressed"][:, same], rtol=1e-6, atol=1e-6)
    selected_out = merge([own, selected_read])
    torch.testing.assert_close(selected_out[:, same], data["selected"][:, same], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_gates_that_are_shut_let_nothing_through():
    torch.manual_seed(0)
    module = NSAConfig(dim=16, chunk_size=4, num_chunks=6, top_k=2).build()
    layer = module.layers[0]
    assert isinstance(layer, NSALayer)
    x = torch.randn(2, 30, 16)
    layer.gate.weight.zero_()
    layer.gate.bias.fill_(-1e9)
    y, state = module(x, module.initial_state(2))
    torch.testing.assert_close(y, x + layer.feed_forward(x))
    assert (module.read(x, state) == 0).all()


def test_choosing_is_trained_by_the_compressed_stream():
    torch.manual_seed(0)
    module = NSAConfig(dim=16, chunk_size=4, num_chunks=8, top_k=1).build()
    x = torch.randn(1, 30, 16, requires_grad=True)
    y, _ = module(x, module.initial_state(1))
    (y[0, -1] ** 2).sum().backward()
    assert x.grad is not None
    # All chunks have gradients, although only one is selected.
    assert (x.grad.abs().sum(-1) > 0).all()

"""Attention inside selected chunks, its normaliser, and merges of several read-outs."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels import attend_chosen, choose_chunks, chunk_retrieval, merge

PATHS: list[Any] = ["dense", "gather", "listed"]
COMBINES: list[Any] = ["hierarchical", "joint"]


def choose_and_attend(arguments, path, **options):
    """Select chunks and attend to them in two calls, as `chunk_retrieval` does in one."""
    positions, lengths = options.pop("positions", None), options.pop("lengths", None)
    combine, choose_options = options.pop("combine"), options
    valid = arguments["valid"]
    if lengths is not None:
        chunks = arguments["keys"].shape[1]
        valid = valid if valid.dtype == torch.bool else torch.arange(chunks) < valid[..., None]
        valid = valid & (lengths > 0)[:, None]
    selection = choose_chunks(
        valid,
        summary_query=arguments.get("summary_query", arguments["query"]),
        summaries=arguments["summaries"],
        return_lse=True,
        **choose_options,
    )
    out, lse = attend_chosen(
        arguments["query"],
        arguments["keys"],
        arguments["values"],
        selection.chunks,
        selection.scores,
        combine=combine,
        positions=positions,
        lengths=lengths,
        return_lse=True,
        implementation=path,
    )
    if combine == "hierarchical":  # the selection's softmax weights the chunks
        assert selection.lse is not None
        shared = lse.shape[2] // selection.lse.shape[2]
        torch.testing.assert_close(lse, selection.lse.repeat_interleave(shared, dim=2))
    return out, lse


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    time=st.integers(1, 4),
    chunks=st.integers(1, 7),
    length=st.integers(1, 5),
    heads_groups=st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3)]),
    coarse=st.sampled_from([None, 1, 2]),
    top_k=st.integers(1, 9),
    combine=st.sampled_from(["hierarchical", "joint"]),
    positional=st.booleans(),
    with_lengths=st.booleans(),
    always=st.sampled_from([(0, 0), (1, 2)]),
)
def test_choosing_and_attending_are_retrieval(
    draw, seed, time, chunks, length, heads_groups, coarse, top_k, combine, positional, with_lengths, always
):
    heads, groups = heads_groups
    coarse = coarse if coarse is None or heads % coarse == 0 else 1
    arguments = draw(seed, 2, time, chunks, length, heads, groups, 6, coarse)
    options: dict[str, Any] = {"combine": combine, "top_k": max(top_k, sum(always))}
    options |= {"num_sink_chunks": always[0], "num_local_chunks": always[1]}
    if positional:
        options["positions"] = torch.randn(length, 6, dtype=torch.float64)
    if with_lengths:
        generator = torch.Generator().manual_seed(seed)
        options["lengths"] = torch.randint(0, length + 1, (2, chunks), generator=generator)
    names = [name for name, value in arguments.items() if value.is_floating_point()]
    runs: dict[str, Any] = {
        path: lambda fresh, path=path: chunk_retrieval(
            **fresh, **options, return_lse=True, implementation=path
        )
        for path in ["reference", *PATHS]
    }
    for path in [*PATHS, "reference"]:
        runs[f"halves by {path}"] = lambda fresh, path=path: choose_and_attend(fresh, path, **options)
    results = {}
    for name, run in runs.items():
        fresh: dict[str, Any] = {
            key: value.clone().requires_grad_(key in names) for key, value in arguments.items()
        }
        out, lse = run(fresh)
        non_empty = lse > -math.inf
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        loss = (out * weights).sum() + (torch.where(non_empty, lse, 0) * weights[..., 0]).sum()
        if loss.requires_grad:  # false for the definition if no query reads anything
            loss.backward()
        grads = [torch.zeros_like(fresh[n]) if fresh[n].grad is None else fresh[n].grad for n in names]
        results[name] = [out.detach(), lse.detach(), *grads]
    for name, result in results.items():
        for tensor_name, value, right in zip(
            ["out", "lse", *names], result, results["reference"], strict=True
        ):
            torch.testing.assert_close(
                value, right, rtol=1e-9, atol=1e-9, msg=lambda m, n=name, w=tensor_name: f"{n}, {w}: {m}"
            )


@pytest.mark.parametrize("path", ["reference", *PATHS, "auto"])
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("time", [1, 3])
def test_unselected_chunks_may_hold_nan(draw, path, combine, time):
    arguments = draw(5, time=time)
    chunks = torch.tensor([[0, -1], [2, 0]])[:, None, None].expand(-1, time, 1, -1).clone()
    chunks[1, -1] = -1
    scores = torch.randn(chunks.shape, dtype=torch.float64)
    query, keys, values = (arguments[name] for name in ("query", "keys", "values"))
    clean = attend_chosen(query, keys, values, chunks, scores, combine=combine, implementation=path)
    query, keys, values = query.clone(), keys.clone(), values.clone()
    for table in (keys, values):
        table[0, 1:] = math.nan
        table[1, 1] = math.inf
        table[1, 3:] = math.nan
    query[1, -1] = math.nan
    leaves = [tensor.requires_grad_() for tensor in (query, keys, values, scores)]
    out = attend_chosen(query, keys, values, chunks, scores, combine=combine, implementation=path)
    assert torch.equal(out, clean)
    assert (out[1, -1] == 0).all()
    out.square().sum().backward()
    for leaf in leaves:
        assert leaf.grad is None or leaf.grad.isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_without_readable_chunks_outputs_are_zeros_with_a_gradient_graph(draw, path):
    arguments = draw(5)
    chunks = torch.full((2, 5, 2, 3), -1)
    query = arguments["query"].requires_grad_()
    out, lse = attend_chosen(
        query,
        arguments["keys"],
        arguments["values"],
        chunks,
        combine="joint",
        return_lse=True,
        implementation=path,
    )
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    out.sum().backward()
    assert query.grad is not None
    assert (query.grad == 0).all()


@pytest.mark.parametrize("lengths", [None, torch.zeros(2, 0, dtype=torch.long)])
def test_a_store_without_chunks_reads_zeros(draw, lengths):
    arguments = draw(5, chunks=0)
    query, keys, values = (arguments[name] for name in ("query", "keys", "values"))
    chunks = torch.full((2, 5, 2, 3), -1)
    out, lse = attend_chosen(query, keys, values, chunks, combine="joint", lengths=lengths, return_lse=True)
    assert (out == 0).all()
    assert (lse == -math.inf).all()


def test_a_set_of_keys_in_three_parts_merges_to_attention_over_all(draw):
    arguments = draw(7, chunks=6)
    query, keys, values = (arguments[name] for name in ("query", "keys", "values"))
    time = query.shape[1]

    def read(first, last):
        chunks = torch.arange(first, last).expand(2, time, 1, -1)
        return attend_chosen(query, keys, values, chunks, combine="joint", return_lse=True)

    whole, lse = read(0, 6)
    parts = [read(0, 1), read(1, 4), read(4, 6)]
    torch.testing.assert_close(merge(parts), whole, rtol=1e-12, atol=1e-12)
    logs = torch.stack([part[1] for part in parts], dim=-1)
    torch.testing.assert_close(torch.logsumexp(logs, dim=-1), lse, rtol=1e-12, atol=1e-12)


def test_landmark_attention_is_a_merge_of_retrieval_and_local_attention():
    """The grouped softmax of Mohtashami & Jaggi 2023, section 3.1, computed below token by token."""
    generator = torch.Generator().manual_seed(0)
    chunks, length, width, local = 4, 3, 8, 5

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, landmarks = normal(width), normal(chunks, width)
    keys, values = normal(chunks, length, width), normal(chunks, length, width)
    local_keys, local_values = normal(local, width), normal(local, width)
    scale = width**-0.5
    # The query's own group holds the local tokens and one landmark per chunk. A landmark distributes its
    # weight over the tokens of its chunk.
    own = torch.softmax(torch.cat([local_keys, landmarks]) @ query * scale, dim=0)
    expected = own[:local] @ local_values
    for m in range(chunks):
        inside = torch.softmax(keys[m] @ query * scale, dim=0)
        expected = expected + own[local + m] * (inside @ values[m])

    far = chunk_retrieval(
        query.view(1, 1, 1, -1),
        keys.view(1, chunks, length, 1, -1),
        values.view(1, chunks, length, 1, -1),
        landmarks.view(1, chunks, 1, -1),
        torch.full((1, 1), chunks),
        top_k=chunks,
        return_lse=True,
    )
    near = chunk_retrieval(
        query.view(1, 1, 1, -1),
        local_keys.view(1, 1, local, 1, -1),
        local_values.view(1, 1, local, 1, -1),
        local_keys[:1].view(1, 1, 1, -1),
        torch.full((1, 1), 1),
        top_k=1,
        combine="joint",
        return_lse=True,
    )
    assert isinstance(far, tuple)
    assert isinstance(near, tuple)
    torch.testing.assert_close(merge([far, near])[0, 0, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("path", ["reference", *PATHS])
@pytest.mark.parametrize("combine", ["hierarchical", "joint"])
def test_merged_read_outs_have_the_gradients_of_finite_differences(draw, path, combine):
    arguments = draw(11, batch=1, time=2, chunks=4, length=2, heads=2, groups=1, width=2)
    arguments["valid"] = torch.tensor([[4, 0]])
    names = ["query", "keys", "values", "summaries"]
    local = (torch.randn(1, 2, 2, 2, dtype=torch.float64), torch.randn(1, 2, 2, dtype=torch.float64))

    def merge_read_outs(*tensors):
        fresh = arguments | dict(zip(names, tensors, strict=True))
        part = chunk_retrieval(**fresh, top_k=2, combine=combine, return_lse=True, implementation=path)
        assert isinstance(part, tuple)
        return merge([part, local])

    leaves = [arguments[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(merge_read_outs, leaves)
    if path != "reference":
        assert torch.autograd.gradgradcheck(merge_read_outs, leaves)


def test_blocks_of_queries_change_nothing(draw, monkeypatch):
    from scrubjay.kernels.retrieval import vectorized

    arguments = draw(2, batch=3, time=9)
    for path in PATHS:
        whole = choose_and_attend(arguments, path, top_k=2, combine="joint")
        monkeypatch.setattr(vectorized, "_BLOCK_SCALARS", dict.fromkeys(PATHS, 200))
        pieces = choose_and_attend(arguments, path, top_k=2, combine="joint")
        monkeypatch.undo()
        for value, right in zip(pieces, whole, strict=True):
            torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)


def test_a_compiled_call_is_one_graph_with_the_same_values_and_gradients(draw):
    arguments = draw(14, time=3, dtype=torch.float32)

    def loss(query, keys, values, summaries, valid):
        selection = choose_chunks(valid, summary_query=query, summaries=summaries, top_k=2)
        out, lse = attend_chosen(query, keys, values, selection.chunks, selection.scores, return_lse=True)
        return merge([(out, lse), (torch.ones_like(out), torch.zeros_like(lse))]).square().sum()

    compiled_loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for run in (loss, compiled_loss):
        fresh = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in arguments.items()}
        value = run(**fresh)
        value.backward()
        results.append([value.detach(), *(v.grad for v in fresh.values() if v.requires_grad)])
    for value_, right in zip(*results, strict=True):
        torch.testing.assert_close(value_, right)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"chunks": torch.zeros(2, 5, 2)}, TypeError, "chunks have dtype"),
        ({"chunks": torch.zeros(2, 4, 2, 1, dtype=torch.long)}, ValueError, "chunks have shape"),
        ({"chunks": torch.zeros(2, 5, 3, 1, dtype=torch.long)}, ValueError, "3 heads of chunks do not"),
        ({"chunks": torch.full((2, 5, 2, 3), 6)}, ValueError, "chunks has index 6, but keys has only 6"),
        ({"scores": None}, ValueError, "pass scores or use combine='joint'"),
        ({"scores": torch.zeros(2, 5, 2, 2)}, ValueError, "scores have shape"),
        ({"scores": torch.zeros(2, 5, 2, 3, dtype=torch.long)}, TypeError, "scores have dtype"),
        ({"combine": "sum"}, ValueError, "combine='sum'"),
        ({"lengths": torch.zeros(2, 6)}, TypeError, "lengths have dtype"),
    ],
)
def test_mistakes_are_named(draw, change, error, message):
    arguments = draw(0)
    inputs: dict[str, Any] = {name: arguments[name] for name in ("query", "keys", "values")}
    inputs |= {"chunks": torch.zeros(2, 5, 2, 3, dtype=torch.long), "scores": torch.zeros(2, 5, 2, 3)}
    with pytest.raises(error, match=message):
        attend_chosen(**inputs | change)

"""The torch paths of chunk retrieval: unreadable chunks, ties, blocks and dtypes."""

from typing import Any

import pytest
import torch

from scrubjay.kernels import chunk_retrieval
from scrubjay.kernels.retrieval import vectorized

PATHS: list[Any] = ["dense", "gather", "listed"]
TENSORS = ["query", "keys", "values", "summaries"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("first", "last"), [(0, 3), (2, 5), (4, 6), (3, 4), (0, 0)])
def test_unreadable_chunks_at_both_ends_have_no_effect(draw, path, first, last):
    """Such inputs occur in a large store early in an episode."""
    arguments = draw(3)
    valid = torch.zeros(2, 5, 6, dtype=torch.bool)
    valid[:, 1:, first:last] = torch.rand(2, 4, last - first) < 0.8
    small = {name: arguments[name][:, first:last].clone() for name in ("keys", "values", "summaries")}
    for name in small:
        arguments[name][:, :first] = arguments[name][:, last:] = float("nan")
        arguments[name].requires_grad_()
    out = chunk_retrieval(**{**arguments, "valid": valid}, top_k=2, implementation=path)
    expected = chunk_retrieval(
        **{**arguments, **small, "valid": valid[..., first:last]}, top_k=2, implementation="reference"
    )
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    out.square().sum().backward()
    for name in small:
        grad = arguments[name].grad
        assert grad is not None
        assert grad[:, :first].count_nonzero() == grad[:, last:].count_nonzero() == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("combine", ["hierarchical", "joint"])
def test_unreadable_chunks_may_hold_nan(draw, path, combine):
    arguments = draw(0)
    arguments["valid"] = torch.tensor([[0, 1, 2, 2, 1], [3, 3, 0, 1, 2]])
    clean = chunk_retrieval(**arguments, top_k=4, combine=combine, implementation=path)
    for name in ("keys", "values", "summaries"):
        arguments[name] = arguments[name].clone()
        arguments[name][0, 2:] = float("nan")
        arguments[name][1, 3:] = float("inf")
        arguments[name].requires_grad_()
    arguments["query"].requires_grad_()
    out = chunk_retrieval(**arguments, top_k=4, combine=combine, implementation=path)
    assert torch.equal(out, clean)
    out.sum().backward()
    for name in ("query", "keys", "values", "summaries"):
        grad = arguments[name].grad
        assert grad is None or torch.isfinite(grad).all()


@pytest.mark.parametrize("path", PATHS)
def test_gradients_are_the_same_in_every_run(draw, path):
    arguments = draw(22, time=40, chunks=5, dtype=torch.float32)
    leaves = [arguments[name].requires_grad_() for name in TENSORS]

    def gradients():
        return torch.autograd.grad(
            chunk_retrieval(**arguments, top_k=3, implementation=path).square().sum(), leaves
        )

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_blocks_of_queries_change_nothing(draw, path, monkeypatch):
    arguments = draw(6, time=63)
    whole = chunk_retrieval(**arguments, top_k=3, implementation=path)
    monkeypatch.setattr(vectorized, "_BLOCK_SCALARS", dict.fromkeys(PATHS, 500))
    torch.testing.assert_close(chunk_retrieval(**arguments, top_k=3, implementation=path), whole)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time", [1, 5, 64])
def test_equal_summaries_are_tied_however_a_product_rounds_them(draw, path, time, dtype):
    # A large product may sum its last columns in another order.
    arguments = draw(11, time=time, chunks=63, heads=1, groups=1, width=40, dtype=dtype)
    arguments["summaries"] = arguments["summaries"][:, :1].repeat(1, 63, 1, 1)
    arguments["valid"] = torch.full((2, time), 63)
    out = chunk_retrieval(**arguments, top_k=3, implementation=path)
    for name in ("keys", "values", "summaries"):
        arguments[name] = arguments[name][:, :3]
    arguments["valid"] = torch.full((2, time), 3)
    torch.testing.assert_close(out, chunk_retrieval(**arguments, top_k=3, implementation=path))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [-1.0, 0.0])
def test_any_summary_scale_ranks_as_it_says(draw, assert_equals_the_definition, path, scale):
    arguments = draw(26)
    mask = torch.tensor([1, 1, 0, 1, 1, 1]).bool().expand(2, 5, 6)
    arguments["summaries"][:, 3:] = arguments["summaries"][:, :1]
    arguments["summaries"][:, 2] = float("nan")
    assert_equals_the_definition(arguments | {"valid": mask}, path, top_k=2, summary_scale=scale)


@pytest.mark.parametrize("path", ["auto", *PATHS])
def test_ties_are_ties_in_the_dtype_of_the_summaries(draw, assert_equals_the_definition, path):
    arguments = draw(27, chunks=7, groups=1)
    equal = torch.randn(1, 1, 1, 33).expand(2, 7, 1, 33).contiguous()
    arguments |= {"summaries": equal, "valid": torch.full((2, 5), 7)}
    assert_equals_the_definition(arguments, path, top_k=3, summary_query=torch.randn(2, 5, 2, 33))


@pytest.mark.parametrize("path", ["auto", *PATHS])
def test_lengths_beyond_the_chunk_are_the_chunk(draw, assert_equals_the_definition, path):
    lengths = torch.tensor([[0, 9, -2, 3, 1, 2], [99, 2, 0, 0, 1, 3]])
    assert_equals_the_definition(draw(28), path, top_k=2, lengths=lengths)


@pytest.mark.parametrize("path", ["auto", *PATHS])
def test_a_query_that_may_read_nothing_may_hold_nan(draw, path):
    arguments = draw(29)
    arguments["valid"][:, 1] = 0
    arguments["query"][:, 1] = float("nan")
    leaves = [arguments[name].requires_grad_() for name in TENSORS]
    out = chunk_retrieval(**arguments, top_k=2, implementation=path)
    assert (out[:, 1] == 0).all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), leaves))


@pytest.mark.parametrize("path", ["reference", "dense", "gather"])
def test_products_too_large_for_half_precision_are_taken_in_float32(path):
    query = torch.full((1, 1, 1, 64), 100.0, dtype=torch.float16)
    keys = torch.full((1, 2, 2, 1, 64), 20.0, dtype=torch.float16)
    keys[0, 0, 0] *= 0.5
    summaries = torch.ones(1, 2, 1, 64, dtype=torch.float16)
    out = chunk_retrieval(query, keys, keys, summaries, torch.tensor([[2]]), top_k=2, implementation=path)
    torch.testing.assert_close(out, torch.full_like(out, 20.0))

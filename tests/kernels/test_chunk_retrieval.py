"""Every path of chunk retrieval against its definition, forward and backward."""

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels import chunk_retrieval

PATHS: list[Any] = ["dense", "gather"]


def draw(
    seed, batch=2, time=5, chunks=6, length=3, heads=4, groups=2, width=6, coarse=None, dtype=torch.float64
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    arguments = {
        "query": normal(batch, time, heads, width),
        "keys": normal(batch, chunks, length, groups, width),
        "values": normal(batch, chunks, length, groups, width),
        "summaries": normal(batch, chunks, groups, width),
        "valid": torch.randint(0, chunks + 1, (batch, time), generator=generator),
    }
    if coarse is not None:
        arguments["summary_query"] = normal(batch, time, coarse, 5)
        arguments["summaries"] = normal(batch, chunks, 1, 5)
    return arguments


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    time=st.integers(1, 5),
    chunks=st.integers(0, 7),
    length=st.integers(1, 7),
    heads_groups=st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3)]),
    coarse=st.sampled_from([None, 1, 2]),
    top_k=st.integers(1, 9),
    combine=st.sampled_from(["hierarchical", "joint"]),
    positional=st.booleans(),
    masked=st.booleans(),
)
def test_paths_equal_the_definition_in_value_and_gradient(
    seed, time, chunks, length, heads_groups, coarse, top_k, combine, positional, masked
):
    heads, groups = heads_groups
    coarse = coarse if coarse is None or heads % coarse == 0 else 1
    arguments = draw(seed, 2, time, chunks, length, heads, groups, 6, coarse)
    if masked:
        arguments["valid"] = torch.rand(2, time, chunks, generator=torch.Generator().manual_seed(seed)) < 0.5
    positions = torch.randn(length, 6, dtype=torch.float64) if positional else None
    differentiable = [name for name, value in arguments.items() if value.is_floating_point()]
    results = {}
    for path in ["reference", *PATHS]:
        fresh: dict[str, Any] = {
            name: value.clone().requires_grad_(name in differentiable) for name, value in arguments.items()
        }
        out = chunk_retrieval(**fresh, top_k=top_k, combine=combine, positions=positions, implementation=path)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        if out.requires_grad:
            (out * weights).sum().backward()
        grads = {
            n: torch.zeros_like(fresh[n]) if fresh[n].grad is None else fresh[n].grad for n in differentiable
        }
        results[path] = (out, grads)
    expected, expected_grads = results["reference"]
    for path in PATHS:
        out, grads = results[path]
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        for name in differentiable:
            torch.testing.assert_close(grads[name], expected_grads[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("first", "last"), [(0, 3), (2, 5), (4, 6), (3, 4), (0, 0)])
def test_chunks_around_all_that_is_read_do_not_count(path, first, last):
    """As in a large store that a young episode has only begun to fill."""
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
def test_unreadable_chunks_may_hold_nan(path, combine):
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


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_a_query_that_may_read_nothing_gets_exact_zeros(path):
    arguments = draw(1)
    arguments["valid"] = torch.zeros(2, 5, dtype=torch.long)
    assert (chunk_retrieval(**arguments, top_k=2, implementation=path) == 0).all()


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_of_equal_scores_the_earlier_chunk_wins(path):
    arguments = draw(2, chunks=40)
    arguments["summaries"] = torch.ones_like(arguments["summaries"])
    arguments["valid"] = torch.full((2, 5), 40)
    first_two: dict[str, Any] = {
        name: value[:, :2] if name in ("keys", "values", "summaries") else value
        for name, value in arguments.items()
    } | {"valid": torch.full((2, 5), 2)}
    out = chunk_retrieval(**arguments, top_k=2, implementation=path)
    torch.testing.assert_close(out, chunk_retrieval(**first_two, top_k=2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_match_finite_differences(path):
    arguments = draw(3, batch=1, time=2, chunks=3, length=2, heads=2, groups=1, width=3)
    arguments["valid"] = torch.tensor([[2, 3]])
    names = ["query", "keys", "values", "summaries"]

    def readout(*tensors):
        return chunk_retrieval(
            **(arguments | dict(zip(names, tensors, strict=True))), top_k=2, implementation=path
        )

    assert torch.autograd.gradcheck(readout, [arguments[n].requires_grad_() for n in names])


def test_joint_over_all_chunks_is_full_attention():
    arguments = draw(4, groups=4)
    arguments["valid"] = torch.full((2, 5), 6)
    out = chunk_retrieval(**arguments, top_k=6, combine="joint")
    keys = arguments["keys"].flatten(1, 2).transpose(1, 2)
    values = arguments["values"].flatten(1, 2).transpose(1, 2)
    full = torch.nn.functional.scaled_dot_product_attention(arguments["query"].transpose(1, 2), keys, values)
    torch.testing.assert_close(out, full.transpose(1, 2), rtol=1e-10, atol=1e-10)


def test_stop_memory_gradient_reaches_the_query_alone():
    arguments = {n: v.requires_grad_() if v.is_floating_point() else v for n, v in draw(5).items()}
    chunk_retrieval(**arguments, top_k=2, stop_memory_gradient=True).sum().backward()
    assert arguments["query"].grad is not None
    assert all(arguments[name].grad is None for name in ("keys", "values", "summaries"))


@pytest.mark.parametrize("path", PATHS)
def test_blocks_of_queries_change_nothing(path, monkeypatch):
    arguments = draw(6, time=63)
    whole = chunk_retrieval(**arguments, top_k=3, implementation=path)
    monkeypatch.setattr(sys.modules["scrubjay.kernels.chunk_retrieval"], "_BLOCK_SCALARS", 500)
    torch.testing.assert_close(chunk_retrieval(**arguments, top_k=3, implementation=path), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS)
def test_half_precision_stays_near_the_definition(path, dtype):
    arguments = draw(7, dtype=torch.float32)
    low = {n: v.to(dtype) if v.is_floating_point() else v for n, v in arguments.items()}
    upcast = {n: v.double() if v.is_floating_point() else v for n, v in low.items()}
    out = chunk_retrieval(**low, top_k=6, implementation=path)
    exact = chunk_retrieval(**upcast, top_k=6, implementation="reference")
    assert out.dtype == dtype
    error = (out.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < (2e-3 if dtype == torch.float16 else 2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"combine": "sum"}, "combine='sum'"),
        ({"query": torch.zeros(2, 5, 4)}, "query has shape"),
        ({"query": torch.zeros(2, 5, 3, 6)}, "do not divide"),
        ({"keys": torch.zeros(2, 6, 3, 2, 7)}, "keys have shape"),
        ({"values": torch.zeros(2, 5, 3, 2, 6)}, "values have shape"),
        ({"summaries": torch.zeros(2, 5, 2, 6)}, "summaries have shape"),
        ({"valid": torch.zeros(2, 4, dtype=torch.long)}, "valid has shape"),
        ({"valid": torch.zeros(2, 5, 7, dtype=torch.bool)}, "valid has shape"),
        ({"positions": torch.zeros(4, 6)}, "positions have shape"),
    ],
)
def test_bad_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        chunk_retrieval(**({"top_k": 2} | draw(8, dtype=torch.float32) | change))


def test_float_validity_is_refused():
    arguments: dict[str, Any] = draw(9) | {"valid": torch.zeros(2, 5)}
    with pytest.raises(TypeError, match="dtype"):
        chunk_retrieval(**arguments, top_k=1)

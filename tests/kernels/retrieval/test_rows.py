"""Products with rows of a table without copying them, and the memory layouts that allow this."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels import chunk_retrieval
from scrubjay.kernels.retrieval.rows import Runs, dots, mix

PATHS: list[Any] = ["dense", "gather", "listed"]
TENSORS = ["query", "keys", "values", "summaries"]


def test_heads_first_caches_are_read_in_place(draw):
    arguments = draw(18, time=1)
    expected = chunk_retrieval(**arguments, top_k=2, implementation="reference")
    for name in ("keys", "values"):
        arguments[name] = arguments[name].permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4)
    torch.testing.assert_close(chunk_retrieval(**arguments, top_k=2, implementation="listed"), expected)


def test_rows_that_are_not_aligned_are_refused_by_the_path_that_needs_them_and_read_by_others(draw):
    arguments = draw(19)
    keys = torch.zeros(*arguments["keys"].shape[:-1], 7, dtype=torch.float64)
    keys[..., :6] = arguments["keys"]
    arguments["keys"] = keys[..., :6]
    with pytest.raises(ValueError, match="strides"):
        chunk_retrieval(**arguments, top_k=2, implementation="listed")
    expected = chunk_retrieval(**arguments, top_k=2, implementation="reference")
    torch.testing.assert_close(chunk_retrieval(**arguments, top_k=2), expected)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    queries=st.integers(1, 5),
    num_runs=st.integers(1, 3),
    length=st.integers(1, 4),
    stride=st.integers(1, 3),
)
def test_products_with_listed_rows_equal_fetching_them(seed, queries, num_runs, length, stride):
    generator = torch.Generator().manual_seed(seed)
    rows = 3 * length * stride
    first = torch.randint(0, 3, (queries, num_runs), generator=generator) * length * stride
    first += torch.randint(0, stride, (queries, num_runs), generator=generator)
    runs = Runs(first, length, stride, rows)
    x = torch.randn(queries, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(rows, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(
        queries, num_runs, length, generator=generator, dtype=torch.float64, requires_grad=True
    )
    rows_by_index = table[first[..., None] + torch.arange(length) * stride]
    torch.testing.assert_close(dots(x, table, runs), (rows_by_index * x[:, None, None]).sum(-1))
    torch.testing.assert_close(mix(weights, table, runs), (rows_by_index * weights[..., None]).sum((1, 2)))
    (grad,) = torch.autograd.grad(mix(weights, table, runs).square().sum(), table)
    (expected_grad,) = torch.autograd.grad(
        (rows_by_index * weights[..., None]).sum((1, 2)).square().sum(), table
    )
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("path", ["auto", *PATHS])
@pytest.mark.parametrize("time", [1, 5])
def test_values_may_be_some_columns_of_the_keys(draw, assert_equals_the_definition, path, time):
    arguments = draw(24, time=time)
    arguments["values"] = arguments["keys"][..., :2]
    assert_equals_the_definition(arguments, path, top_k=2)


@pytest.mark.parametrize("path", ["auto", "dense", "gather"])
@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_expanded_keys_are_read_as_such(draw, assert_equals_the_definition, path, dim):
    arguments = draw(25)
    for name in ("keys", "values"):
        arguments[name] = arguments[name].narrow(dim, 0, 1).expand_as(arguments[name])
    assert_equals_the_definition(arguments, path, top_k=2)

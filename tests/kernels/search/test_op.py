"""The scan for the nearest rows: arrays, tensors and the definition find the same."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels import force, nearest, row_scores


def draw(seed, queries, rows, width, with_norms, with_mask) -> dict[str, Any]:
    """Return arrays of few whole numbers, whose products are exact and often equal."""
    random = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        "query": random.integers(-1, 2, (queries, width)).astype(np.float32),
        "keys": random.integers(-1, 2, (rows, width)).astype(np.float32),
        "norms": 2.0 ** random.integers(0, 3, rows).astype(np.float32) if with_norms else None,
        "row_mask": random.random(rows) < 0.6 if with_mask else None,
    }
    if with_mask:
        arrays["keys"][~arrays["row_mask"]] = np.nan
    return arrays


def as_tensors(arrays) -> dict[str, Any]:
    return {name: None if a is None else torch.from_numpy(a) for name, a in arrays.items()}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 3),
    rows=st.integers(0, 40),
    width=st.integers(1, 9),
    count=st.integers(1, 45),
    with_norms=st.booleans(),
    with_mask=st.booleans(),
)
def test_arrays_and_tensors_find_what_the_definition_does(
    seed, queries, rows, width, count, with_norms, with_mask
):
    arrays = draw(seed, queries, rows, width, with_norms, with_mask)
    tensors = as_tensors(arrays)
    right = nearest(count=count, **tensors, implementation="reference")
    by_torch = nearest(count=count, **tensors)
    by_numpy = nearest(count=count, **arrays)
    assert torch.equal(by_torch.rows, right.rows)
    assert torch.equal(by_torch.scores, right.scores)
    np.testing.assert_array_equal(by_numpy.rows, right.rows)
    np.testing.assert_array_equal(by_numpy.scores, right.scores)
    assert by_numpy.rows.dtype == np.int64
    assert by_numpy.scores.dtype == np.float32


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(dtype, implementation):
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(n, 500, generator=generator).to(dtype) for n in (2, 30))
    exact = query.double() @ keys.double().T
    rows = torch.tensor([7, 7, 0, 29])
    with torch.autocast("cpu", torch.bfloat16):
        results = nearest(query, keys, 30, implementation=implementation)
        selected_scores = row_scores(query, keys, rows, implementation=implementation)
    right = exact.sort(dim=1, descending=True)
    assert torch.equal(results.rows, right.indices)
    assert torch.allclose(results.scores.double(), right.values, atol=1e-4)
    assert torch.allclose(selected_scores.double(), exact[:, rows], atol=1e-4)
    assert results.scores.dtype == selected_scores.dtype == torch.float32


@pytest.mark.parametrize("queries", [1, 3])
def test_listed_rows_are_scored_as_all_are(queries):
    random = np.random.default_rng(0)
    query, keys = (random.standard_normal((n, 20), dtype=np.float32) for n in (queries, 50))
    rows = random.integers(0, 50, 70)
    scores = row_scores(query, keys, rows)
    np.testing.assert_allclose(scores, (query @ keys.T)[:, rows], atol=1e-5)
    tensors = [torch.from_numpy(array) for array in (query, keys, rows)]
    assert torch.allclose(row_scores(*tensors), torch.from_numpy(scores), atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "torch", "numpy"])
def test_what_is_not_a_number_is_not_found_and_infinity_is(implementation):
    query = np.array([[1.0, 0.0]], dtype=np.float32)
    keys = np.array([[np.nan, 0], [1, 0], [-np.inf, 0], [np.inf, 0], [2, 0]], dtype=np.float32)
    if implementation == "numpy":
        scores, rows = nearest(query, keys, 5)
    else:
        with force(implementation):
            scores, rows = nearest(torch.from_numpy(query), torch.from_numpy(keys), 5)
    assert rows.tolist() == [[3, 4, 1, -1, -1]]
    assert scores.tolist() == [[np.inf, 2, 1, -np.inf, -np.inf]]


def test_gradients_are_not_recorded_and_arguments_stay_as_they_are():
    query, keys = torch.randn(1, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    before = keys.detach().clone()
    assert not nearest(query, keys, 2).scores.requires_grad
    assert not row_scores(query, keys, torch.arange(3)).requires_grad
    assert torch.equal(keys, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": 0}, ValueError, "count=0: must be at least 1"),
        ({"query": np.zeros(3, "f")}, ValueError, r"query has shape \(3,\), keys \(5, 3\)"),
        ({"query": np.zeros((1, 4), "f")}, ValueError, r"expected \[queries, width\] and \[rows, width\]"),
        ({"norms": np.ones(4, "f")}, ValueError, r"norms has shape \(4,\); expected \(5,\)"),
        ({"row_mask": np.ones(5)}, TypeError, "row_mask has dtype float64; expected bool"),
        ({"keys": np.zeros((5, 3))}, TypeError, "keys float64; arrays must be float32"),
        ({"implementation": "torch"}, ValueError, "implementation='torch': numpy arrays support only 'auto'"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    right: dict[str, Any] = {"query": np.zeros((1, 3), "f"), "keys": np.zeros((5, 3), "f"), "count": 2}
    with pytest.raises(error, match=message):
        nearest(**right | arguments)


def test_wrong_tensors_and_rows_are_named():
    query, keys = torch.zeros(1, 3), torch.zeros(5, 3)
    with pytest.raises(TypeError, match=r"float32, not torch\.float64"):
        nearest(query.double(), keys, 1)
    with pytest.raises(ValueError, match="implementation='fast'; choose from"):
        nearest(query, keys, 1, implementation="fast")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"rows has shape \(1,\) and dtype torch\.float32"):
        row_scores(query, keys, torch.zeros(1))
    with pytest.raises(IndexError):
        row_scores(np.zeros((1, 3), "f"), np.zeros((5, 3), "f"), np.array([5]))

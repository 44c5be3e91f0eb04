"""Top-k selection by numpy and by torch, compared with a sorted list."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scrubjay.kernels.select import _select_by_packed_keys, best, largest

# Few distinct values, so that most scores have equals; both zeros are among them.
SCORES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 12)),
    elements=st.sampled_from([-math.inf, -2.5, -0.0, 0.0, 1e-45, 1.0, 3e38, math.inf]),
)


def expected(row, count) -> list[int]:
    """Return the expected indices without those of -inf, whose order is undefined."""
    there = [place for place, score in enumerate(row) if score > -math.inf]
    return sorted(there, key=lambda place: (-row[place], place))[:count]


@pytest.mark.parametrize("find", [best, lambda scores, count: best(torch.tensor(scores), count)])
@given(scores=SCORES, count=st.integers(1, 14))
def test_the_largest_come_first_and_of_equals_the_earlier(find, scores, count):
    result = np.asarray(find(scores, count))
    assert result.shape == (len(scores), min(count, scores.shape[1]))
    for row, places in zip(scores, result.tolist(), strict=True):
        right = expected(row, count)
        assert places[: len(right)] == right
        assert len(set(places)) == len(places)


@given(scores=SCORES, count=st.integers(1, 12))
def test_whole_numbers_on_a_gpu_choose_alike(scores, count):
    count = min(count, scores.shape[1])
    result = _select_by_packed_keys(torch.tensor(scores), count)
    for row, places in zip(scores, result.tolist(), strict=True):
        right = expected(row, count)
        assert places[: len(right)] == right


def test_a_traced_graph_chooses_alike():
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0]])
    graph = torch.compile(lambda x: best(x, 2), fullgraph=True, backend="eager")
    assert graph(scores).tolist() == best(scores, 2).tolist() == [[1, 2]]


def test_a_row_alone_and_any_leading_dims():
    scores = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    assert best(scores[0, 0], 2).tolist() == [3, 2]
    assert (best(scores, 2) == [3, 2]).all()
    assert best(scores, 2).shape == best(torch.tensor(scores), 2).shape == (2, 3, 2)


def test_arrays_need_no_torch(modules_after):
    module_names = modules_after(
        "import numpy; from scrubjay.kernels.select import best; best(numpy.ones((2, 3)), 2)"
    )
    assert "torch" not in module_names


@pytest.mark.parametrize("columns", [640, 671, 1000])
def test_selection_by_groups_equals_topk(columns):
    """Cover comparison by groups, with and without scores after the last whole group."""
    generator = torch.Generator().manual_seed(columns)
    scores = torch.randn(3, 5, columns, generator=generator)
    # The best scores may all lie in one group, or after the last group.
    scores[0, 0, 64:74] += 20
    scores[0, 1, -1] += 20
    scores[1, 0] = -math.inf
    for count in (1, 5):
        values, places = largest(scores, count)
        torch.testing.assert_close(values, scores.topk(count).values, rtol=0, atol=0)
        torch.testing.assert_close(values, scores.gather(-1, places), rtol=0, atol=0)
        assert all(len(set(row.tolist())) == count for row in places.flatten(0, 1))

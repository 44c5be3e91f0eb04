"""Eviction keeps the best columns in order; among equal scores the earlier one wins."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.context.parts.eviction import drop_worst, gather_columns, keep_best


@st.composite
def worths(draw):
    """Draw scores, many of them equal and some infinite, and the number of columns to keep."""
    columns = draw(st.integers(2, 40))
    worth = st.sampled_from([-1.0, 0.0, 0.5, 2.0, float("inf")])
    rows = draw(st.lists(st.lists(worth, min_size=columns, max_size=columns), min_size=4, max_size=4))
    return torch.tensor(rows).view(2, 2, columns), draw(st.integers(1, columns - 1))


@given(worths())
def test_the_worst_go_and_the_rest_stay_in_order(case):
    worth, most = case
    best_columns = drop_worst(worth, most)
    assert torch.equal(best_columns, keep_best(worth, torch.tensor([most, most]), most))
    for row, columns in zip(worth.flatten(0, 1).tolist(), best_columns.flatten(0, 1).tolist(), strict=True):
        ranking = sorted(range(len(row)), key=lambda column: (-row[column], column))
        assert columns == sorted(ranking[:most])


def test_each_head_takes_its_own():
    table = torch.randn(2, 3, 7, 4)
    columns = torch.randint(0, 7, (2, 3, 5))
    gathered_columns = gather_columns(table, columns)
    assert torch.equal(gathered_columns, table.gather(2, columns[..., None].expand(-1, -1, -1, 4)))

"""Tests of the chunk schedule against the grid layout."""

import pytest
import torch

from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.titans.schedule import Sizes, build_schedule


def draw(starts):
    start = torch.zeros(3, 10, dtype=torch.bool)
    for row, step in starts:
        start[row, step] = True
    return ChunkGrid.from_starts(torch.tensor([5, 5, 5]), start, 4)


def make_schedule(grid, every=None):
    sizes = Sizes(3, grid.num_chunks, 4, 8, 2, 2, 1, 2, 0.25, 0.8, False)
    angle = torch.zeros(4, 4)
    return build_schedule(grid, sizes, (angle + 1, angle), every)


@pytest.mark.parametrize("starts", [[], [(0, 0), (1, 0), (2, 0)], [(0, 3), (1, 0), (1, 7)]])
def test_steps_lie_where_the_grid_lays_them_chunk_after_chunk(starts):
    grid = draw(starts)
    schedule = make_schedule(grid)
    x = torch.randn(3, 10, 8)
    rows = torch.cat([x.flatten(0, 1), torch.zeros(1, 8)])
    grid_x = rows.index_select(0, schedule.source)
    expected = grid.to_grid(x).unflatten(1, (grid.num_chunks, 4)).transpose(0, 1)
    torch.testing.assert_close(grid_x.view_as(expected), expected, rtol=0, atol=0)
    torch.testing.assert_close(grid_x.index_select(0, schedule.target).view_as(x), x, rtol=0, atol=0)
    valid_steps = (
        torch.ones_like(expected[..., 0], dtype=torch.bool)
        if schedule.valid_steps is None
        else schedule.valid_steps[:, ::2]
    )
    assert torch.equal(valid_steps, expected[..., 0] != 0)


def test_rows_of_memory_begin_anew_and_stop_gradients_where_their_chunks_do():
    schedule = make_schedule(draw([(0, 3), (1, 0)]), every=1)
    assert {index: rows.tolist() for index, rows in schedule.fresh.items()} == {0: [2, 3], 1: [0, 1]}
    # Chunk 0 of rows 0 and 2 continues an earlier chunk.
    assert schedule.gradient_stops[0].tolist() == [2, 3]
    assert schedule.gradient_stops[1].tolist() == [0, 1, 2, 3, 4, 5]


def test_an_anchor_stays_behind_a_chunk_that_is_open():
    schedule = make_schedule(draw([(0, 9)]))
    assert schedule.anchor_chunk is not None
    # Row 0 starts an episode with its last chunk; the other rows have an incomplete third chunk.
    assert schedule.anchor_chunk.tolist() == [3, 3, 2, 2, 2, 2]

"""Where steps lie that are gone through chunk by chunk, against the grid's own laying out."""

import pytest
import torch

from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.titans.course import Sizes, course_of


def draw(starts):
    start = torch.zeros(3, 10, dtype=torch.bool)
    for row, step in starts:
        start[row, step] = True
    return ChunkGrid.of(torch.tensor([5, 5, 5]), start, 4)


def course(grid, every=None):
    sizes = Sizes(3, grid.num_chunks, 4, 8, 2, 2, 1, 2, 0.25, 0.8, False)
    angle = torch.zeros(4, 4)
    return course_of(grid, sizes, (angle + 1, angle), every)


@pytest.mark.parametrize("starts", [[], [(0, 0), (1, 0), (2, 0)], [(0, 3), (1, 0), (1, 7)]])
def test_steps_lie_where_the_grid_lays_them_chunk_after_chunk(starts):
    grid = draw(starts)
    at = course(grid)
    x = torch.randn(3, 10, 8)
    rows = torch.cat([x.flatten(0, 1), torch.zeros(1, 8)])
    laid = rows.index_select(0, at.source)
    expected = grid.lay(x).unflatten(1, (grid.num_chunks, 4)).transpose(0, 1)
    torch.testing.assert_close(laid.view_as(expected), expected, rtol=0, atol=0)
    torch.testing.assert_close(laid.index_select(0, at.target).view_as(x), x, rtol=0, atol=0)
    learned = (
        torch.ones_like(expected[..., 0], dtype=torch.bool) if at.learned is None else at.learned[:, ::2]
    )
    assert torch.equal(learned, expected[..., 0] != 0)


def test_rows_of_memory_begin_anew_and_stop_gradients_where_their_chunks_do():
    at = course(draw([(0, 3), (1, 0)]), every=1)
    assert {index: rows.tolist() for index, rows in at.fresh.items()} == {0: [2, 3], 1: [0, 1]}
    # Chunk 0 of rows 0 and 2 has begun before.
    assert at.stopped[0].tolist() == [2, 3]
    assert at.stopped[1].tolist() == [0, 1, 2, 3, 4, 5]


def test_an_anchor_stays_behind_a_chunk_that_is_open():
    at = course(draw([(0, 9)]))
    assert at.anchored is not None
    # Row 0 begins its last chunk anew, and the others have a third chunk open.
    assert at.anchored.tolist() == [3, 3, 2, 2, 2, 2]

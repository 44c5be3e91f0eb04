"""Cells of a comparison, and the grids of commands that train them."""

import itertools
import random

import pytest

from scrubjay.experiments import Run
from scrubjay.experiments.launch.grid import Cell, find_runs, split_into_grids

GRID = list(
    itertools.starmap(Cell, itertools.product(("tmaze", "ppo", "mqar"), ("none", "gru", "hcam"), range(3)))
)


def expand(grids):
    return [Cell(*names) for grid in grids for names in itertools.product(*grid)]


@pytest.mark.parametrize("seed", range(20))
def test_grids_have_all_cells_and_no_others(seed):
    generator = random.Random(seed)
    cells = generator.sample(GRID, generator.randint(1, len(GRID)))
    assert sorted(expand(split_into_grids(cells))) == sorted(cells)


def test_a_full_grid_is_one_grid_in_the_order_of_its_cells():
    assert split_into_grids(GRID) == [(("tmaze", "ppo", "mqar"), ("none", "gru", "hcam"), (0, 1, 2))]
    (grid,) = split_into_grids(sorted(GRID, reverse=True))
    assert sorted(expand([grid])) == sorted(GRID)


def test_runs_with_other_names_are_not_cells(tiny, tmp_path):
    for seed in (10, 9):
        Run.create(tiny(seed=seed), tmp_path / f"tiny-gru-s{seed}")
    Run.create(tiny(), tmp_path / "mine")
    Run.create(tiny(seed=4), tmp_path / "tiny-gru-s5")
    cells = map(Cell.from_run, find_runs(tmp_path))
    assert list(filter(None, cells)) == [Cell("tiny", "gru", 9), Cell("tiny", "gru", 10)]

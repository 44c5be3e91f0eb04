"""Grid of a comparison, recipes x methods x seeds, and the runs of earlier commands in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.files import CONFIG
from scrubjay.experiments.launch.parallel import prepare
from scrubjay.experiments.runs.config import Experiment
from scrubjay.experiments.runs.run import Run


class Cell(NamedTuple):
    """One run of a comparison."""

    recipe: str
    method: str
    """Name of the memory; in a comparison of teams, name of the method."""
    seed: int

    @property
    def folder_name(self) -> str:
        """Name of the run's folder."""
        return f"{self.recipe}-{self.method}-s{self.seed}"

    @classmethod
    def from_run(cls, run: Run) -> Cell | None:
        """Return the cell of a run; None if the name of its folder does not come from a comparison."""
        recipe, seed = run.config.recipe, run.config.seed
        cell = cls(recipe, run.path.name.removeprefix(f"{recipe}-").removesuffix(f"-s{seed}"), seed)
        return cell if cell.folder_name == run.path.name else None


def find_runs(out: Path, trust: bool = False) -> list[Run]:
    """Return the runs in the folder `out`, sorted by recipe, label and seed."""
    runs = [Run.load(file.parent, trust) for file in out.glob(f"*/{CONFIG}")]
    return sorted(runs, key=lambda run: (run.config.recipe, run.config.label, run.config.seed))


def accept_run(run: Run, make_config: Callable[[], Experiment]) -> Run:
    """Return a run of an earlier command in the same folder.

    Raises UsageError if its settings are not those that the present command would give it.
    """
    try:
        return prepare(make_config(), run.path, run.trust)
    except UsageError as error:
        raise UsageError(
            f"{run.path} belongs to another comparison; choose another --out, or use the same settings "
            f"({error})"
        ) from error


def split_into_grids(
    cells: Iterable[Cell],
) -> list[tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]]:
    """Return grids (recipes, methods, seeds) that have all these cells and no others."""
    seeds: dict[tuple[str, str], tuple[int, ...]] = {}
    for recipe, method, seed in cells:
        seeds[recipe, method] = (*seeds.get((recipe, method), ()), seed)
    methods: dict[tuple[str, tuple[int, ...]], tuple[str, ...]] = {}
    for (recipe, method), own in seeds.items():
        key = recipe, tuple(sorted(own))
        methods[key] = (*methods.get(key, ()), method)
    recipes: dict[tuple[tuple[str, ...], tuple[int, ...]], tuple[str, ...]] = {}
    for (recipe, own), names in methods.items():
        recipes[names, own] = (*recipes.get((names, own), ()), recipe)
    return [(names, own_methods, own) for (own_methods, own), names in recipes.items()]

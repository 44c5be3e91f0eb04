"""`scrubjay compare`: train every memory on every recipe with every seed, then write a table and plots.

scrubjay compare --memories none gru hcam --recipes tmaze repeat-previous --seeds 0 1 2 --jobs 2 --out DIR

`scrubjay demo` is the smallest comparison: one recipe, with and without memory.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scrubjay.experiments.cli.arguments import choose, parse
from scrubjay.experiments.cli.failures import UsageError, bad_input, check_at_least
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.commands.options import Jobs
from scrubjay.experiments.progress import GracefulInterrupt

if TYPE_CHECKING:
    from scrubjay.experiments.launch.grid import Cell
    from scrubjay.experiments.launch.search import Search
    from scrubjay.experiments.runs.config import Experiment
    from scrubjay.experiments.runs.run import Run


@dataclass(frozen=True)
class CompareOptions:
    """Train memories x recipes x seeds and tabulate the results.

    The same command continues an interrupted comparison. Flags after `--` are passed to train. Tables and
    plots include the runs of earlier commands with the same --out. These must have the same settings.
    """

    memories: tuple[str, ...] = ("none", "gru")
    """Memories to compare; only for single-agent recipes."""
    methods: tuple[str, ...] = ("gamatr", "hatrpo", "mappo")
    """Methods to compare, on multi-agent recipes."""
    recipes: tuple[str, ...] = ("tmaze",)
    """Recipes to train on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds; one run per seed."""
    search: tuple[str, ...] | None = None
    """First search the settings of each memory or method, all on the same grid. Write each axis of the grid
    as FLAG=VALUES, such as ppo.gamma=0.9,0.99, where FLAG is a flag of train without the dashes. Without an
    axis, the grid has twelve settings of PPO.
    All settings are trained for a quarter of the steps, the better half of them for half of the steps, and
    the best quarter to the end. The comparison then uses the best setting."""
    search_seeds: tuple[int, ...] = (1000,)
    """Random seeds of the search; must differ from --seeds."""
    jobs: Jobs = 2
    out: Path = Path("runs/compare")
    """Directory for all runs, table.md, curves.png and the other plots."""
    trust: bool = False
    """Trust the existing runs in --out: allow the pickled data in their files to execute code."""

    def check(self) -> None:
        """Raise ValueError on invalid numbers and lists, before any training."""
        check_at_least(self, 1, "jobs")
        for name in ("memories", "methods", "recipes", "seeds", "search_seeds"):
            flag, values = f"--{name.replace('_', '-')}", getattr(self, name)
            if not values:
                raise ValueError(f"{flag} is empty; give at least one value")
            if len(set(values)) < len(values):
                raise ValueError(f"{flag} {' '.join(map(str, values))}: give each value once")
        both = set(self.seeds) & set(self.search_seeds)
        if self.search is not None and both:
            raise ValueError(
                f"seeds {sorted(both)} are in both --seeds and --search-seeds: scores on seeds of the search "
                "are biased; choose different seeds"
            )


def compare(argv: Sequence[str]) -> int:
    """`scrubjay compare --memories none gru --recipes tmaze --seeds 0 1 2 --out DIR [-- train flags]`."""
    argv = list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    options, train_flags = parse(CompareOptions, argv[:cut], "scrubjay compare"), argv[cut + 1 :]
    from scrubjay.experiments.files import CONFIG, own_folder
    from scrubjay.experiments.launch.grid import Cell
    from scrubjay.experiments.launch.parallel import prepare, run_in_processes
    from scrubjay.experiments.launch.search import run_searches, write_search_report
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.recipes.overrides import override
    from scrubjay.experiments.recipes.teams import METHODS
    from scrubjay.experiments.viz.comparison import final_table, write_report
    from scrubjay.memory import list_memories

    for label, names, choices in (
        ("memory", options.memories, list_memories()),
        ("method", options.methods, list(METHODS)),
        ("recipe", options.recipes, list(RECIPES)),
    ):
        for name in names:
            choose(label, name, choices)
    with bad_input():
        options.check()
    cells = [
        Cell(recipe, method, seed)
        for recipe in options.recipes
        for method in getattr(options, _varied_option(recipe))
        for seed in options.seeds
    ]
    flags_by_method = {cell[:2]: _flags(*cell[:2], train_flags) for cell in cells}
    with bad_input():
        new_methods = [cell[:2] for cell in cells if not (options.out / cell.folder_name / CONFIG).exists()]
        if options.search is None:  # a search checks its settings itself
            for recipe, method in dict.fromkeys(new_methods):
                override(recipe, flags_by_method[recipe, method]).check()
        searches = _make_searches(flags_by_method, options)
        own_folder(options.out)
        earlier_runs = _find_earlier_runs(cells, train_flags, searches, options)
    try:
        run_searches([searches[method] for method in flags_by_method if method in searches], options.jobs)
        flags_by_method |= {method: search.arguments for method, search in searches.items()}
        runs = {}
        for cell in cells:
            config = override(cell.recipe, [*flags_by_method[cell[:2]], "--seed", str(cell.seed)])
            runs[cell] = prepare(config, options.out / cell.folder_name, options.trust)
        run_in_processes(list(runs.values()), options.jobs)
    except GracefulInterrupt as stop:
        print("\nstopped; run the same command again to continue")
        return stop.exit_code
    runs |= {cell: run for cell, run in earlier_runs.items() if run.is_finished}
    partial_runs = [run for run in earlier_runs.values() if not run.is_finished]
    with bad_input():  # a run's files may be from an old version
        grids = [options] if list(runs) == cells else _split(options, runs)
        command = " && ".join(_command(grid, train_flags) for grid in grids)
        report_files = write_report(list(runs.values()), options.out, command, partial_runs)
        if searches:
            report_files.append(write_search_report(searches, options.out))
    print(final_table(list(runs.values())), *map(one_line, report_files), sep="\n")
    return 0


def _make_searches(
    flags_by_method: Mapping[tuple[str, str], list[str]], options: CompareOptions
) -> dict[tuple[str, str], Search]:
    """Return the search of the settings of each method; an empty dict without --search."""
    from scrubjay.experiments.launch.search import SETTINGS, Search
    from scrubjay.experiments.launch.sweep import Sweep, parse_param

    if options.search is None:
        return {}
    params = tuple(map(parse_param, options.search or SETTINGS))
    return {
        (recipe, method): Search(
            Sweep(recipe, params, tuple(flags)),
            options.search_seeds,
            options.out / "search" / f"{recipe}-{method}",
            options.trust,
        )
        for (recipe, method), flags in flags_by_method.items()
    }


def _find_earlier_runs(
    cells: Sequence[Cell],
    train_flags: Sequence[str],
    searches: dict[tuple[str, str], Search],
    options: CompareOptions,
) -> dict[Cell, Run]:
    """Return the other runs of this comparison, from earlier commands with the same --out.

    The searches of their methods are added to `searches`. Raises UsageError if a run has other settings.
    """
    from scrubjay.experiments.launch.grid import Cell, accept_run, find_runs
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.recipes.overrides import override

    def make_config(cell: Cell) -> Experiment:
        choose("recipe", cell.recipe, list(RECIPES))
        flags = _flags(cell.recipe, cell.method, train_flags)
        if options.search is not None:
            if cell[:2] not in searches:
                searches.update(_make_searches({cell[:2]: flags}, options))
            if not searches[cell[:2]].is_finished:
                raise UsageError("its settings do not come from a search")
            flags = searches[cell[:2]].arguments
        return override(cell.recipe, [*flags, "--seed", str(cell.seed)])

    runs = {}
    for run in find_runs(options.out, options.trust):
        cell = Cell.from_run(run)
        if cell is not None and cell not in cells:
            runs[cell] = accept_run(run, partial(make_config, cell))
    return runs


def _flags(recipe: str, method: str, train_flags: Sequence[str]) -> list[str]:
    """Return the flags of train for a memory or method, without the seed."""
    return [_VARIED_FLAGS[_varied_option(recipe)], method, *train_flags]


_VARIED_FLAGS = {"memories": "--memory", "methods": "--method"}
"""Flag of train for each option with the values to compare."""


def _varied_option(recipe: str) -> str:
    """Return the name of the option with the values to compare on a recipe."""
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.runs.reinforcement import TeamTaskConfig

    return "methods" if isinstance(RECIPES[recipe](), TeamTaskConfig) else "memories"


def _split(options: CompareOptions, cells: Iterable[Cell]) -> list[CompareOptions]:
    """Return options that together train these cells and no others."""
    from scrubjay.experiments.launch.grid import split_into_grids

    return [
        dataclasses.replace(options, recipes=recipes, seeds=seeds, **{_varied_option(recipes[0]): methods})
        for recipes, methods, seeds in split_into_grids(cells)
    ]


def _command(options: CompareOptions, train_flags: Sequence[str]) -> str:
    argv = ["scrubjay", "compare"]
    for name in dict.fromkeys(map(_varied_option, options.recipes)):
        argv += [f"--{name}", *getattr(options, name)]
    argv += ["--recipes", *options.recipes, "--seeds", *map(str, options.seeds)]
    if options.search is not None:
        argv += ["--search", *options.search, "--search-seeds", *map(str, options.search_seeds)]
    argv += ["--jobs", str(options.jobs), "--out", str(options.out)]
    return shlex.join([*argv, "--", *train_flags] if train_flags else argv)


@dataclass(frozen=True)
class DemoOptions:
    """Train policies with and without memory to recall cards. Run again to continue or to show the result."""

    memory: str = "hcam"
    """Memory to demonstrate."""
    total_steps: int | None = None
    """Environment steps per policy; default: set by the recipe."""
    seed: int = 0
    """Random seed."""
    jobs: Jobs = 2
    out: Path = Path("runs/demo")
    """Directory for both runs and curve.png."""

    def check(self) -> None:
        """Raise ValueError on an unknown memory or an invalid number."""
        from scrubjay.memory import make_config

        make_config(self.memory)
        if self.memory == "none":
            raise ValueError("memory='none': this is the baseline; choose another memory")
        if self.jobs < 1 or (self.total_steps is not None and self.total_steps < 1):
            raise ValueError(f"jobs={self.jobs}, total_steps={self.total_steps}: both must be at least 1")


def demo(argv: Sequence[str]) -> int:
    """`scrubjay demo`: train both policies, plot and print the results; return the exit code."""
    options = parse(DemoOptions, argv, "scrubjay demo")
    with bad_input():
        options.check()
    from scrubjay.experiments.files import own_folder
    from scrubjay.experiments.launch.grid import accept_run, find_runs
    from scrubjay.experiments.launch.parallel import prepare, run_in_processes
    from scrubjay.experiments.recipes import with_memory
    from scrubjay.experiments.recipes.tasks import recall_demo
    from scrubjay.experiments.viz.curves import has_curve, plot_runs

    base = dataclasses.replace(recall_demo(), seed=options.seed)
    if options.total_steps is not None:
        base = dataclasses.replace(base, total_steps=options.total_steps)
    names = ["none", options.memory]
    configs = {options.out / f"{name}-s{options.seed}": with_memory(base, name) for name in names}
    with bad_input():
        for config in configs.values():
            config.check()
        own_folder(options.out)
        earlier_runs = [
            accept_run(run, partial(with_memory, dataclasses.replace(base, seed=run.config.seed), name))
            for run in find_runs(options.out)
            if (name := run.path.name.removesuffix(f"-s{run.config.seed}")) != run.path.name
            and run.path not in configs
        ]
    runs = [prepare(config, path) for path, config in configs.items()]
    totals = " and ".join(dict.fromkeys(f"{run.config.total_steps:,}" for run in runs))
    plan = f"{base.recipe}: {totals} steps each for {' and '.join(names)}, in {options.out}"
    print(one_line(plan), flush=True)
    try:
        run_in_processes(runs, options.jobs)
    except GracefulInterrupt as stop:
        print("\nstopped; run the same command again to continue")
        return stop.exit_code
    with bad_input():  # a run's files may be from an old version
        curve = plot_runs([*runs, *filter(has_curve, earlier_runs)], options.out / "curve.png")
        metric_names = ("success", "success_low", "success_high", "seconds")
        rows = [tuple(run.result[name] for name in metric_names) for run in runs]
    print(
        "\nEach step shows a card; the task is to name the suit of the card shown "
        f"{base.env.kwargs['k']} steps ago.\n"
        f"Without memory the best possible accuracy is {base.success_without_memory:.0%}. Accuracy of the "
        f"trained policies over {base.eval_episodes} new episodes:"
    )
    for name, run, (success, low, high, seconds) in zip(names, runs, rows, strict=True):
        metric_names = f"[{low:.2f}, {high:.2f}]   {seconds:.0f} s of training, {one_line(run.path)}"
        print(f"  {name:<6} {success:.2f}  {metric_names}")
    print(one_line(f"curve: {curve}"))
    return 0

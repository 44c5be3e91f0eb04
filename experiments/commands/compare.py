"""`scrubjay compare`: train every memory on every recipe with every seed, then write a table and plots.

scrubjay compare --memories none gru hcam --recipes tmaze repeat-previous --seeds 0 1 2 --jobs 2 --out DIR

`scrubjay demo` is the smallest comparison: one recipe, with and without memory.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scrubjay.experiments.cli.arguments import choose, parse
from scrubjay.experiments.cli.failures import bad_input, check_at_least
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.commands.options import Jobs
from scrubjay.experiments.progress import GracefulInterrupt


@dataclass(frozen=True)
class CompareOptions:
    """Train memories x recipes x seeds and tabulate the results.

    The same command continues an interrupted comparison. Flags after `--` are passed to train.
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
    from scrubjay.experiments.launch.parallel import prepare, run_in_processes
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.recipes.overrides import override
    from scrubjay.experiments.recipes.teams import METHODS
    from scrubjay.experiments.viz.comparison import write_report
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
    flags_by_method = {
        (recipe, method): [_VARIED_FLAGS[name], method, *train_flags]
        for recipe in options.recipes
        for name in [_varied_option(recipe)]
        for method in getattr(options, name)
    }
    try:
        search_reports = [] if options.search is None else [_search_settings(flags_by_method, options)]
        runs = []
        for (recipe, method), flags in flags_by_method.items():
            for seed in options.seeds:
                config = override(recipe, [*flags, "--seed", str(seed)])
                runs.append(prepare(config, options.out / f"{recipe}-{method}-s{seed}", options.trust))
        run_in_processes(runs, options.jobs)
    except GracefulInterrupt as stop:
        print("\nstopped; run the same command again to continue")
        return stop.exit_code
    with bad_input():  # a run's files may be from an old version
        report_files = write_report(runs, options.out, _command(options, train_flags))
    print(*map(one_line, [*report_files, *search_reports]), sep="\n")
    return 0


def _search_settings(flags_by_method: dict[tuple[str, str], list[str]], options: CompareOptions) -> Path:
    """Search the settings of every method, and write the best ones into `flags_by_method`.

    Returns the path of the search report.
    """
    from scrubjay.experiments.launch.search import SETTINGS, Search, run_searches, write_search_report
    from scrubjay.experiments.launch.sweep import Sweep, parse_param

    with bad_input():
        params = tuple(map(parse_param, options.search or SETTINGS))
        searches = {
            (recipe, method): Search(
                Sweep(recipe, params, tuple(flags)),
                options.search_seeds,
                options.out / "search" / f"{recipe}-{method}",
                options.trust,
            )
            for (recipe, method), flags in flags_by_method.items()
        }
    run_searches(list(searches.values()), options.jobs)
    for method, search in searches.items():
        flags_by_method[method] = search.arguments
    return write_search_report(searches, options.out)


_VARIED_FLAGS = {"memories": "--memory", "methods": "--method"}
"""Flag of train for each option with the values to compare."""


def _varied_option(recipe: str) -> str:
    """Return the name of the option with the values to compare on a recipe."""
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.runs.reinforcement import TeamTaskConfig

    return "methods" if isinstance(RECIPES[recipe](), TeamTaskConfig) else "memories"


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
    from scrubjay.experiments.launch.parallel import prepare, run_in_processes
    from scrubjay.experiments.recipes import with_memory
    from scrubjay.experiments.recipes.tasks import recall_demo
    from scrubjay.experiments.viz.curves import plot_runs

    base = dataclasses.replace(recall_demo(), seed=options.seed)
    if options.total_steps is not None:
        base = dataclasses.replace(base, total_steps=options.total_steps)
    names = ["none", options.memory]
    runs = [prepare(with_memory(base, name), options.out / f"{name}-s{options.seed}") for name in names]
    totals = " and ".join(dict.fromkeys(f"{run.config.total_steps:,}" for run in runs))
    print(f"{base.recipe}: {totals} steps each for {' and '.join(names)}, in {options.out}", flush=True)
    try:
        run_in_processes(runs, options.jobs)
    except GracefulInterrupt as stop:
        print("\nstopped; run the same command again to continue")
        return stop.exit_code
    with bad_input():  # a run's files may be from an old version
        curve = plot_runs(runs, options.out / "curve.png")
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

"""Memories against each other: every memory on every recipe with every seed, then one table and its plots.

scrubjay compare --memories none gru hcam --recipes tmaze repeat-previous --seeds 0 1 2 --jobs 2 --out DIR
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scrubjay.experiments.runs.stopping import Interrupted
from scrubjay.experiments.words.arguments import choose, parse
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input


@dataclass(frozen=True)
class CompareOptions:
    """Train memories x recipes x seeds and tabulate; running it again goes on.

    Flags after `--` go to train.
    """

    memories: tuple[str, ...] = ("none", "gru")
    """Names of memories, for recipes of one agent."""
    methods: tuple[str, ...] = ("gamatr", "hatrpo", "mappo")
    """Names of methods, for recipes of several agents."""
    recipes: tuple[str, ...] = ("tmaze",)
    """Names of recipes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run each."""
    search: tuple[str, ...] | None = None
    """First search settings for each contender, the same for all: name=v1,v2 of flags of train, by default
    twelve of PPO's; the better half of them is trained on, twice, and the best one compared."""
    search_seeds: tuple[int, ...] = (1000,)
    """Seeds of the search, others than `seeds`."""
    jobs: int = 2
    """Processes at once."""
    out: Path = Path("runs/compare")
    """Directory of all runs, table.md, curves.png and the other plots."""
    trust: bool = False
    """Run code that the runs in it have pickled, as those of older versions have."""

    def check(self) -> None:
        """Raise ValueError on numbers and lists that cannot work, before any training."""
        if self.jobs < 1:
            raise ValueError(f"jobs={self.jobs}: at least 1 process is needed")
        for name in ("memories", "methods", "recipes", "seeds", "search_seeds"):
            flag, given = f"--{name.replace('_', '-')}", getattr(self, name)
            if not given:
                raise ValueError(f"{flag} is empty; name at least one")
            if len(set(given)) < len(given):
                raise ValueError(f"{flag} {' '.join(map(str, given))}: name each once")
        both = set(self.seeds) & set(self.search_seeds)
        if self.search is not None and both:
            raise ValueError(
                f"seeds {sorted(both)} are of --seeds and of --search-seeds: what settings were chosen by "
                "tells nothing of how good they are; take others"
            )


def run(words: Sequence[str]) -> int:
    """`scrubjay compare --memories none gru --recipes tmaze --seeds 0 1 2 --out DIR [-- train flags]`."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    options, train_flags = parse(CompareOptions, words[:cut], "scrubjay compare"), words[cut + 1 :]
    from scrubjay.experiments.launching.parallel import prepare, run_in_processes
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.recipes.methods import METHODS
    from scrubjay.experiments.recipes.overrides import override
    from scrubjay.experiments.reports.comparison import write_report
    from scrubjay.memory import list_memories

    for kind, names, known in (
        ("memory", options.memories, list_memories()),
        ("method", options.methods, list(METHODS)),
        ("recipe", options.recipes, list(RECIPES)),
    ):
        for name in names:
            choose(kind, name, known)
    with bad_input():
        options.check()
    words_of = {
        (recipe, contender): [flag, contender, *train_flags]
        for recipe in options.recipes
        for flag, contenders in [_contenders(options, recipe)]
        for contender in contenders
    }
    try:
        found = [] if options.search is None else [_searched(words_of, options)]
        runs = []
        for (recipe, contender), given in words_of.items():
            for seed in options.seeds:
                config = override(recipe, [*given, "--seed", str(seed)])
                runs.append(prepare(config, options.out / f"{recipe}-{contender}-s{seed}", options.trust))
        run_in_processes(runs, options.jobs)
    except Interrupted as stop:
        print("\nstopped; the same command goes on")
        return stop.exit_code
    with bad_input():  # of a run's files, which may be of long ago
        written = write_report(runs, options.out, _command(options, train_flags))
    print(*map(one_line, [*written, *found]), sep="\n")
    return 0


def _searched(words_of: dict[tuple[str, str], list[str]], options: CompareOptions) -> Path:
    """Search settings for all contenders, put the best of each into its words; return what tells of them."""
    from scrubjay.experiments.launching.search import SETTINGS, Search, run_searches, write_found
    from scrubjay.experiments.launching.sweep import Sweep, parse_param

    with bad_input():
        params = tuple(map(parse_param, options.search or SETTINGS))
        searches = {
            (recipe, contender): Search(
                Sweep(recipe, params, tuple(words)),
                options.search_seeds,
                options.out / "search" / f"{recipe}-{contender}",
                options.trust,
            )
            for (recipe, contender), words in words_of.items()
        }
    run_searches(list(searches.values()), options.jobs)
    for contender, search in searches.items():
        words_of[contender] = search.words
    return write_found(searches, options.out)


def _contenders(options: CompareOptions, recipe: str) -> tuple[str, tuple[str, ...]]:
    """Return the flag that names who contends on a recipe, and the names."""
    from scrubjay.experiments.kinds.team import TeamTaskConfig
    from scrubjay.experiments.recipes import RECIPES

    if isinstance(RECIPES[recipe](), TeamTaskConfig):
        return "--method", options.methods
    return "--memory", options.memories


def _command(options: CompareOptions, train_flags: Sequence[str]) -> str:
    words = ["scrubjay", "compare"]
    for name in dict.fromkeys(_contenders(options, recipe)[0] for recipe in options.recipes):
        chosen = options.methods if name == "--method" else options.memories
        words += ["--methods" if name == "--method" else "--memories", *chosen]
    words += ["--recipes", *options.recipes]
    words += ["--seeds", *map(str, options.seeds)]
    if options.search is not None:
        words += ["--search", *options.search, "--search-seeds", *map(str, options.search_seeds)]
    words += ["--jobs", str(options.jobs), "--out", str(options.out)]
    return shlex.join([*words, "--", *train_flags] if train_flags else words)

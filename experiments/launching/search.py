"""The same search of settings for every contender, on seeds of its own, before they are compared.

Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943, algorithm 1): all settings of a grid are
trained for a quarter of the steps, the better half of them to a half, the better half of those to the end.
Every trial is a run like any other, so that a search that was stopped goes on; what is known of a rung is
written down when all its runs have ended.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scrubjay.experiments.kinds.sampled import SampledConfig
from scrubjay.experiments.launching.parallel import prepare, run_in_processes
from scrubjay.experiments.launching.sweep import Sweep, folder_of
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.reading import read_text
from scrubjay.experiments.words.failures import FailedError, UsageError

SETTINGS = ("ppo.learning-rate=3e-4,1e-3,2e-3,4e-3", "ppo.entropy-coefficient=0.003,0.01,0.03")
"""What is searched where nothing else is asked for: twelve settings."""
_PARTS = (4, 2, 1)
"""Of the steps, at each rung, one part in so many."""


class Search:
    """The search of one contender on one recipe; its runs live in `out`.

    Raises UsageError if a setting is wrong, changes what is compared or is there twice, if the recipe is of a
    kind that cannot be searched, or if `out` holds another search.
    """

    def __init__(self, sweep: Sweep, seeds: Sequence[int], out: Path, trust: bool = False) -> None:
        self._sweep, self._seeds, self._out, self._trust = sweep, tuple(seeds), out, trust
        self._trials = {folder_of(trial): trial for trial in sweep.trials()}
        self._check()
        asked = {"recipe": sweep.recipe, "params": sweep.params, "flags": sweep.flags, "seeds": self._seeds}
        self._asked = json.loads(json.dumps(asked))
        self._file = out / "search.json"
        self.rungs: list[dict[str, float]] = []
        """Scores of the settings at each rung that has ended, by their names."""
        if self._file.exists():
            self._go_on()

    @property
    def ended(self) -> bool:
        """Whether the best setting is known."""
        return len(self.rungs) == len(_PARTS)

    @property
    def best(self) -> str:
        """The name of the best setting."""
        return _ranked(self.rungs[-1])[0]

    @property
    def words(self) -> list[str]:
        """The words after `scrubjay train RECIPE` that make a run of the best setting, its seed aside."""
        return self._sweep.words(self._trials[self.best])

    def told(self, name: str) -> str:
        """Return a setting as a reader is told it."""
        return ", ".join(f"{flag}={value}" for flag, value in self._trials[name].items())

    def runs(self) -> list[Run]:
        """Return the runs of the next rung, finished ones included; none if the search has ended."""
        if self.ended:
            return []
        return [run for name in self._alive() for run in self._at_rung(name)]

    def record(self) -> None:
        """Write down what the runs of the next rung, which have all ended, came to.

        Raises FailedError if there is no setting whose runs came to numbers.
        """
        if not self.ended:
            scores = {name: [_score(run) for run in self._at_rung(name)] for name in self._alive()}
            means = {name: sum(of) / len(of) for name, of in scores.items()}
            if not any(map(math.isfinite, means.values())):
                raise FailedError(f"{self._out}: losses are no numbers with any setting; search others")
            self.rungs.append(means)
            self._out.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps({**self._asked, "rungs": self.rungs}, indent=1) + "\n")

    def _alive(self) -> list[str]:
        return _better_half(self.rungs[-1]) if self.rungs else list(self._trials)

    def _at_rung(self, name: str) -> list[Run]:
        runs = []
        for seed, config in zip(self._seeds, self._configs(name), strict=True):
            run = prepare(_of_part(config, _PARTS[0]), self._out / f"{name}_s{seed}", self._trust)
            total = _steps(config, _PARTS[len(self.rungs)])
            # An update may be of more steps than lie between two rungs.
            there = run.config.total_steps == total or (run.finished and run.step >= total)
            runs.append(run if there else run.extended(total))
        return runs

    def _check(self) -> None:
        """Raise UsageError unless all settings compare the same, and can be told from each other."""
        asked = _compared(self._trained_by(self._sweep.flags)[0])
        if not asked["eval_episodes"]:
            raise UsageError("eval_episodes=0: settings are chosen by their scores; at least 1 is needed")
        first: list[SampledConfig] = []
        for trial in self._sweep.trials():
            configs = self._trained_by(self._sweep.words(trial))
            compared = _compared(configs[0])
            for name in {**asked, **compared}:
                if compared.get(name) != asked.get(name):
                    raise UsageError(
                        f"--search {folder_of(trial)} makes {name} {compared.get(name)!r}, not "
                        f"{asked.get(name)!r}: all are compared by the same task, steps and scores, under "
                        "their names; search other settings"
                    )
            if configs[0] in first:
                raise UsageError(f"--search {folder_of(trial)}: the same is searched twice; name it once")
            first.append(configs[0])
            for config in configs:
                config.check()

    def _configs(self, name: str) -> list[SampledConfig]:
        return self._trained_by(self._sweep.words(self._trials[name]))

    def _trained_by(self, words: Sequence[str]) -> list[SampledConfig]:
        """Return the configs that the words of train make, by seeds."""
        configs = []
        for seed in self._seeds:
            config = override(self._sweep.recipe, [*words, "--seed", str(seed)])
            if not isinstance(config, SampledConfig):
                raise UsageError(
                    f"--search is of recipes that act; the step size of {self._sweep.recipe!r} falls by its "
                    "number of steps, so that a quarter of them says little"
                )
            # What follows a run's course follows that of the whole run at every rung.
            configs.append(config.with_learner(config.planned_learner))
        return configs

    def _go_on(self) -> None:
        try:
            kept: Any = json.loads(read_text(self._file))
            rungs = kept.pop("rungs")
            names = [list(self._trials), *map(_better_half, rungs)]
            fits = all(set(rung) == set(alive) for rung, alive in zip(rungs, names, strict=False))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{self._file} is damaged; delete it to score its runs again") from error
        if kept != self._asked or not fits or len(rungs) > len(_PARTS):
            raise UsageError(f"{self._out} holds another search, see {self._file}; choose another --out")
        self.rungs = rungs


def run_searches(searches: Sequence[Search], jobs: int) -> None:
    """Bring all searches to their ends, rung by rung, `jobs` runs at a time.

    Raises as `run_in_processes` and `Search.record`; the same call goes on.
    """
    for rung in range(len(_PARTS)):
        behind = [search for search in searches if len(search.rungs) == rung]
        runs = [run for search in behind for run in search.runs()]
        if runs:
            run_in_processes(runs, jobs)
        for search in behind:
            search.record()


def write_found(searches: dict[tuple[str, str], Search], out: Path) -> Path:
    """Write search.md: the settings found for each recipe and contender, and how the others did."""
    lines = ["| recipe | contender | settings found | score | the next best | score |", "| --- " * 6 + "|"]
    for (recipe, contender), search in searches.items():
        last = search.rungs[-1]
        ranked = _ranked(last)[:2]
        cells = [cell for name in ranked for cell in (search.told(name), _told(last[name]))]
        cells += ["-", "-"] * (2 - len(ranked))
        lines.append(f"| {' | '.join([recipe, contender, *cells])} |")
    path = out / "search.md"
    write_atomically(path, "\n".join(lines) + "\n")
    return path


def _ranked(scores: dict[str, float]) -> list[str]:
    # Of equals the one that stands first in the grid.
    return sorted(scores, key=lambda name: -scores[name])


def _better_half(scores: dict[str, float]) -> list[str]:
    # Weights that are no numbers cannot be trained on.
    return [name for name in _ranked(scores)[: -(-len(scores) // 2)] if math.isfinite(scores[name])]


def _score(run: Run) -> float:
    """Return what a run came to; less than anything where its weights are no numbers."""
    if run.lost:
        return -math.inf
    result = run.result
    return float(result["success"] if "success" in result else result["episodic_return"])


def _told(score: float) -> str:
    return f"{score:.3f}" if math.isfinite(score) else "lost"


def _compared(config: SampledConfig) -> dict[str, Any]:
    """Return what settings leave as it is: who is compared in which task, and how."""
    env = {"env": config.env.id, **{f"set.{name}": value for name, value in config.env.kwargs.items()}}
    names = ("recipe", "label", "total_steps", "eval_episodes")
    return {**env, **{name: getattr(config, name) for name in names}}


def _steps(config: SampledConfig, part: int) -> int:
    return -(-config.total_steps // part)


def _of_part(config: SampledConfig, part: int) -> SampledConfig:
    return dataclasses.replace(config, total_steps=_steps(config, part))

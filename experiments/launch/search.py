"""Hyperparameter search for every memory or method before a comparison, on separate seeds.

The search is successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943, algorithm 1) with three rungs.
First all settings of a grid are trained for a quarter of the steps. The better half of these settings is then
trained to half of the steps, and the better half of that half to the end. Every trial is an ordinary run, so
that an interrupted search can continue. The scores of a rung are written when all its runs have finished.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scrubjay.experiments.cli.failures import FailedError, UsageError
from scrubjay.experiments.files import parse, read_untrusted, write_atomically
from scrubjay.experiments.launch.parallel import prepare, run_in_processes
from scrubjay.experiments.launch.sweep import Sweep, folder_name
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.runs.reinforcement import RLConfig
from scrubjay.experiments.runs.run import Run

SETTINGS = ("ppo.learning-rate=3e-4,1e-3,2e-3,4e-3", "ppo.entropy-coefficient=0.003,0.01,0.03")
"""Default grid of twelve settings."""
_STEP_DIVISORS = (4, 2, 1)
"""Divisor of the total steps at each rung."""


class Search:
    """Search of settings for one memory or method on one recipe, with its runs in `out`.

    Raises UsageError if a setting is invalid, if a setting changes the compared task, if two settings are
    equal, if the recipe does not support a search, or if `out` holds another search.
    """

    def __init__(self, sweep: Sweep, seeds: Sequence[int], out: Path, trust: bool = False) -> None:
        self._sweep, self._seeds, self._out, self._trust = sweep, tuple(seeds), out, trust
        self._trials = {folder_name(trial): trial for trial in sweep.trials()}
        self._check()
        spec = {"recipe": sweep.recipe, "params": sweep.params, "flags": sweep.flags, "seeds": self._seeds}
        self._spec = json.loads(json.dumps(spec))
        self._file = out / "search.json"
        self.rungs: list[dict[str, float]] = []
        """Scores of the settings by name, for each finished rung."""
        if self._file.exists():
            self._go_on()

    @property
    def is_finished(self) -> bool:
        """True if all rungs are finished."""
        return len(self.rungs) == len(_STEP_DIVISORS)

    @property
    def best(self) -> str:
        """Name of the best setting."""
        return _rank(self.rungs[-1])[0]

    @property
    def arguments(self) -> list[str]:
        """Arguments to append to `scrubjay train RECIPE` for a run with the best setting; without a seed."""
        return self._sweep.arguments(self._trials[self.best])

    def describe_setting(self, name: str) -> str:
        """Return a setting as text for reports."""
        return ", ".join(f"{flag}={value}" for flag, value in self._trials[name].items())

    def runs(self) -> list[Run]:
        """Return all runs of the next rung, including finished runs; empty if the search is finished."""
        if self.is_finished:
            return []
        return [run for name in self._alive() for run in self._at_rung(name)]

    def record(self) -> None:
        """Write the scores of the next rung, whose runs have all finished.

        Raises FailedError if the losses of all settings are NaN.
        """
        if not self.is_finished:
            scores = {name: [_score(run) for run in self._at_rung(name)] for name in self._alive()}
            means = {name: sum(of) / len(of) for name, of in scores.items()}
            if not any(map(math.isfinite, means.values())):
                raise FailedError(f"{self._out}: losses are NaN for all settings; search other settings")
            self.rungs.append(means)
            self._out.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps({**self._spec, "rungs": self.rungs}, indent=1) + "\n")

    def _alive(self) -> list[str]:
        return _better_half(self.rungs[-1]) if self.rungs else list(self._trials)

    def _at_rung(self, name: str) -> list[Run]:
        runs = []
        configs = self._trained_by(self._sweep.arguments(self._trials[name]))
        for seed, config in zip(self._seeds, configs, strict=True):
            start = dataclasses.replace(config, total_steps=_steps(config, _STEP_DIVISORS[0]))
            run = prepare(start, self._out / f"{name}_s{seed}", self._trust)
            total = _steps(config, _STEP_DIVISORS[len(self.rungs)])
            # One update may take more steps than the distance between two rungs.
            there = run.config.total_steps == total or (run.is_finished and run.step >= total)
            runs.append(run if there else run.with_total_steps(total))
        return runs

    def _check(self) -> None:
        """Raise UsageError if two settings are equal, or if a setting changes task, steps or evaluation."""
        expected_fields = _comparison_fields(self._trained_by(self._sweep.flags)[0])
        if not expected_fields["eval_episodes"]:
            raise UsageError(
                "eval_episodes=0: must be at least 1, since settings are selected by evaluation scores"
            )
        first: list[RLConfig] = []
        for trial in self._sweep.trials():
            configs = self._trained_by(self._sweep.arguments(trial))
            fields = _comparison_fields(configs[0])
            for name in {**expected_fields, **fields}:
                if fields.get(name) != expected_fields.get(name):
                    raise UsageError(
                        f"--search {folder_name(trial)} changes {name} from {expected_fields.get(name)!r} to "
                        f"{fields.get(name)!r}: settings must not change the task, steps, evaluation or "
                        "names; search other settings"
                    )
            if configs[0] in first:
                raise UsageError(f"--search {folder_name(trial)}: duplicate setting; give it once")
            first.append(configs[0])
            for config in configs:
                config.check()

    def _trained_by(self, arguments: Sequence[str]) -> list[RLConfig]:
        """Return one config per seed for these arguments of `scrubjay train`."""
        configs = []
        for seed in self._seeds:
            config = override(self._sweep.recipe, [*arguments, "--seed", str(seed)])
            if not isinstance(config, RLConfig):
                raise UsageError(
                    f"--search does not support {self._sweep.recipe!r}: its learning rate depends on "
                    "the number of steps, so short trials do not predict a full run"
                )
            # Schedules follow the full run at every rung.
            configs.append(config.with_learner(config.planned_learner))
        return configs

    def _go_on(self) -> None:
        try:
            contents: Any = parse(read_untrusted(self._file), self._file)
            rungs = contents.pop("rungs")
            names = [list(self._trials), *map(_better_half, rungs)]
            fits = all(set(scores) == set(alive) for scores, alive in zip(rungs, names, strict=False))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{self._file} is damaged; delete it to score its runs again") from error
        if contents != self._spec or not fits or len(rungs) > len(_STEP_DIVISORS):
            raise UsageError(f"{self._out} holds another search, see {self._file}; choose another --out")
        self.rungs = rungs


def run_searches(searches: Sequence[Search], jobs: int) -> None:
    """Run all searches to the end, rung by rung, `jobs` runs at a time.

    Raises the errors of `run_in_processes` and `Search.record`. A second call continues interrupted searches.
    """
    for stage in range(len(_STEP_DIVISORS)):
        behind = [search for search in searches if len(search.rungs) == stage]
        runs = [run for search in behind for run in search.runs()]
        if runs:
            run_in_processes(runs, jobs)
        for search in behind:
            search.record()


def write_search_report(searches: dict[tuple[str, str], Search], out: Path) -> Path:
    """Write search.md: the best and second-best setting for each recipe and method, with scores."""
    lines = ["| recipe | method | best setting | score | second best | score |", "| --- " * 6 + "|"]
    for (recipe, method), search in searches.items():
        last_scores = search.rungs[-1]
        names = _rank(last_scores)[:2]
        cells = [
            cell
            for name in names
            for cell in (search.describe_setting(name), _format_score(last_scores[name]))
        ]
        cells += ["-", "-"] * (2 - len(names))
        lines.append(f"| {' | '.join([recipe, method, *cells])} |")
    path = out / "search.md"
    write_atomically(path, "\n".join(lines) + "\n")
    return path


def _rank(scores: dict[str, float]) -> list[str]:
    # Ties are broken by the order of the grid.
    return sorted(scores, key=lambda name: -scores[name])


def _better_half(scores: dict[str, float]) -> list[str]:
    # Runs with NaN weights cannot be trained further.
    return [name for name in _rank(scores)[: -(-len(scores) // 2)] if math.isfinite(scores[name])]


def _score(run: Run) -> float:
    """Return the score of a run; -inf if its weights are NaN."""
    if run.loss_warnings:
        return -math.inf
    result = run.result
    return float(result["success"] if "success" in result else result["episodic_return"])


def _format_score(score: float) -> str:
    return f"{score:.3f}" if math.isfinite(score) else "NaN"


def _comparison_fields(config: RLConfig) -> dict[str, Any]:
    """Return the fields that settings must not change: task, label, steps and evaluation."""
    env = {
        "env": config.env.id,
        "wrap": config.env.wrappers,
        **{f"set.{name}": value for name, value in config.env.kwargs.items()},
    }
    names = ("recipe", "label", "total_steps", "eval_episodes")
    return {**env, **{name: getattr(config, name) for name in names}}


def _steps(config: RLConfig, part: int) -> int:
    return -(-config.total_steps // part)

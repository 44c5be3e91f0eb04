"""What teams came to beyond their return: what was measured, beside rules and in teams of other sizes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from scrubjay.experiments.evaluation.team import Actor, PolicyActor, evaluate_team, rules
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.recipes.registry import Range, sizes_of
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.device import one_thread
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.reading import read_numbers
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.runs.statistics import bootstrap_interval, interquartile_mean

_HIDDEN = ("episodes", "episodic_return_low", "episodic_return_high", "episodic_length", "step", "seconds")

Scores = dict[str, float]


def team_tables(runs: Sequence[Run], out: Path) -> list[str]:
    """Return a table of measures for each recipe of teams, and with other sizes one for each measure.

    Rules play the episodes that the runs' results are of. Kept in `out`, computed once.
    """
    tables = []
    for recipe, alike in _evaluated(runs).items():
        tables.append(_measures(alike, out))
        if (sizes := sizes_of(recipe)) is not None:
            tables += _size_tables(alike, out, sizes)
    return tables


def team_plots(runs: Sequence[Run], out: Path) -> list[Path]:
    """Draw the measures at other sizes for each recipe that is tested there, and return the paths."""
    from scrubjay.experiments.reports.team_sizes import plot_sizes

    paths = []
    for recipe, alike in _evaluated(runs).items():
        if (sizes := sizes_of(recipe)) is not None:
            name, trained = sizes[0], int(_config(alike[0]).env.kwargs[sizes[0]])
            paths.append(plot_sizes(_at_sizes(alike, out, sizes), name, trained, out / f"{recipe}-sizes.png"))
    return paths


def _evaluated(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of teams that were judged at their end, by recipe."""
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        if isinstance(run.config, TeamTaskConfig) and "episodic_return" in run.result:
            by_recipe.setdefault(run.config.recipe, []).append(run)
    return by_recipe


def _measures(runs: Sequence[Run], out: Path) -> str:
    config = _config(runs[0])
    scores: dict[str, list[Scores]] = {}
    for run in runs:
        scores.setdefault(run.config.label, []).append(run.result)
    for rule, make in rules(config.env).items():
        for seed in dict.fromkeys(run.config.seed for run in runs):
            file = out / f"{config.recipe}-rule-{rule}-s{seed}.json"
            scores.setdefault(f"rule: {rule}", []).append(
                _kept(file, lambda make=make, seed=seed: _play(make(seed), config, seed))
            )
    names = [name for name in next(iter(scores.values()))[0] if name not in _HIDDEN]
    rows = {
        label: [[result[name] for result in results] for name in names] for label, results in scores.items()
    }
    return _table(f"{config.recipe}, means over {config.eval_episodes} episodes:", names, rows)


def _at_sizes(runs: Sequence[Run], out: Path, sizes: Range) -> dict[str, dict[int, list[Scores]]]:
    """Return what shared actors and rules come to at every size, by label and size, an entry a seed."""
    config = _config(runs[0])
    name, values = sizes
    scores: dict[str, dict[int, list[Scores]]] = {}
    for value in values:
        resized = dataclasses.replace(
            config, env=dataclasses.replace(config.env, kwargs={**config.env.kwargs, name: value})
        )
        for run in runs:
            if _config(run).policy.shared:
                played = _kept(
                    _size_file(run, name, value),
                    lambda run=run, resized=resized: _play(
                        PolicyActor(run.team_policy_in(resized.env)), resized, run.config.seed
                    ),
                )
                scores.setdefault(run.config.label, {}).setdefault(value, []).append(played)
        for rule, make in rules(config.env).items():
            for seed in dict.fromkeys(run.config.seed for run in runs):
                file = out / f"{config.recipe}-rule-{rule}-s{seed}-{name}-{value}.json"
                played = _kept(
                    file, lambda make=make, seed=seed, resized=resized: _play(make(seed), resized, seed)
                )
                scores.setdefault(f"rule: {rule}", {}).setdefault(value, []).append(played)
    return scores


def size_files(run: Run) -> list[Path]:
    """Return where a run's directory keeps what its team came to at other sizes."""
    sizes = sizes_of(run.config.recipe)
    return [] if sizes is None else [_size_file(run, sizes[0], value) for value in sizes[1]]


def _size_file(run: Run, name: str, value: int) -> Path:
    return run.path / f"{name}-{value}.json"


def _size_tables(runs: Sequence[Run], out: Path, sizes: Range) -> list[str]:
    config, scores = _config(runs[0]), _at_sizes(runs, out, sizes)
    name, values = sizes
    measures = [name for name in next(iter(scores.values()))[values[0]][0] if name not in _HIDDEN]
    return [
        _table(
            f"{config.recipe}, trained at {name} {config.env.kwargs[name]}, {measure} at:",
            [str(value) for value in values],
            {
                label: [[played[measure] for played in by_value[value]] for value in values]
                for label, by_value in scores.items()
            },
        )
        for measure in measures
    ]


def _table(title: str, columns: Sequence[str], rows: dict[str, list[list[float]]]) -> str:
    """Return a table with a row for each method, and in each column its scores over seeds."""
    lines = [title, "", f"| method | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    lines += [f"| {label} | {' | '.join(map(_cell, cells))} |" for label, cells in rows.items()]
    return "\n".join(lines)


def _config(run: Run) -> TeamTaskConfig:
    assert isinstance(run.config, TeamTaskConfig)
    return run.config


def _play(actor: Actor, config: TeamTaskConfig, seed: int) -> Scores:
    with one_thread():
        return evaluate_team(
            actor, config.env, config.eval_episodes, derive_seed(seed, "evaluation")
        ).summary()


def _kept(file: Path, play: Callable[[], Scores]) -> Scores:
    if not file.exists():
        write_atomically(file, json.dumps(play()) + "\n")
    return read_numbers(file)


def _cell(scores: Sequence[float]) -> str:
    number = _short(interquartile_mean(scores))
    if len(scores) == 1:
        return number
    low, high = bootstrap_interval(scores)
    return f"{number} [{_short(low)}, {_short(high)}]"


def _short(value: float) -> str:
    """Return a number in three or four digits, large ones in thousands or millions."""
    for scale, suffix in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= 10 * scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.3g}"

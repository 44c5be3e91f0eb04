"""Tables of measures of teams, such as the return, for trained and rule-based policies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.files import read_numbers, write_atomically
from scrubjay.experiments.recipes.registry import Range, size_range
from scrubjay.experiments.resources import one_thread
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.evaluation import Rule, evaluate_team, list_rules
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.statistics import bootstrap_interval, interquartile_mean

_HIDDEN = ("episodes", "episodic_return_low", "episodic_return_high", "episodic_length", "step", "seconds")

Scores = dict[str, float]


def team_tables(runs: Sequence[Run], out: Path) -> list[str]:
    """Return tables of measures of trained and rule-based policies: one table for each team recipe.

    For a recipe that is tested at several team sizes, also return one table per measure. Rule-based
    policies play the same evaluation episodes as the runs. Their scores are computed once and then stored in
    `out`.
    """
    tables = []
    for recipe, group in _group_evaluated_runs(runs).items():
        tables.append(_measure_table(group, out))
        if (sizes := size_range(recipe)) is not None:
            tables += _size_tables(group, out, sizes)
    return tables


def team_plots(runs: Sequence[Run], out: Path) -> list[Path]:
    """Plot measures against team size, for each recipe that is tested at several sizes; return the paths."""
    from scrubjay.experiments.viz.curves import plot_sizes

    paths = []
    for recipe, group in _group_evaluated_runs(runs).items():
        if (sizes := size_range(recipe)) is not None:
            name, training_size = sizes[0], int(_config(group[0]).env.kwargs[sizes[0]])
            paths.append(
                plot_sizes(
                    _scores_by_size(group, out, sizes), name, training_size, out / f"{recipe}-sizes.png"
                )
            )
    return paths


def _group_evaluated_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return a dict from each recipe to its team runs that have an evaluation result."""
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        if isinstance(run.config, TeamTaskConfig) and "episodic_return" in run.result:
            by_recipe.setdefault(run.config.recipe, []).append(run)
    return by_recipe


def _measure_table(runs: Sequence[Run], out: Path) -> str:
    config = _config(runs[0])
    scores: dict[str, list[Scores]] = {}
    for run in runs:
        scores.setdefault(run.config.label, []).append(run.result)
    for rule, make in list_rules(config.env).items():
        for seed in dict.fromkeys(run.config.seed for run in runs):
            file = out / f"{config.recipe}-rule-{rule}-s{seed}.json"
            scores.setdefault(f"rule: {rule}", []).append(
                _load_or_play(file, lambda make=make, seed=seed: _play(make(seed), config, seed))
            )
    names = [name for name in next(iter(scores.values()))[0] if name not in _HIDDEN]
    rows = {
        label: [[result[name] for result in results] for name in names] for label, results in scores.items()
    }
    return _table(f"{config.recipe}, means over {config.eval_episodes} episodes:", names, rows)


def _scores_by_size(runs: Sequence[Run], out: Path, sizes: Range) -> dict[str, dict[int, list[Scores]]]:
    """Return `scores[label][team_size]`, a list with one entry per seed.

    Runs without a shared actor are omitted. Rule-based policies have the labels `rule: <name>`.
    """
    config = _config(runs[0])
    name, values = sizes
    scores: dict[str, dict[int, list[Scores]]] = {}
    for value in values:
        resized_config = dataclasses.replace(
            config, env=dataclasses.replace(config.env, kwargs={**config.env.kwargs, name: value})
        )
        for run in runs:
            if _config(run).policy.shared:
                seed_scores = _load_or_play(
                    _size_file(run, name, value),
                    lambda run=run, resized_config=resized_config: _play(
                        run.team_policy_for(resized_config.env), resized_config, run.config.seed
                    ),
                )
                scores.setdefault(run.config.label, {}).setdefault(value, []).append(seed_scores)
        for rule, make in list_rules(config.env).items():
            for seed in dict.fromkeys(run.config.seed for run in runs):
                file = out / f"{config.recipe}-rule-{rule}-s{seed}-{name}-{value}.json"
                seed_scores = _load_or_play(
                    file,
                    lambda make=make, seed=seed, resized_config=resized_config: _play(
                        make(seed), resized_config, seed
                    ),
                )
                scores.setdefault(f"rule: {rule}", {}).setdefault(value, []).append(seed_scores)
    return scores


def size_files(run: Run) -> list[Path]:
    """Return the files in which a run stores its test scores: one file per tested team size."""
    sizes = size_range(run.config.recipe)
    return [] if sizes is None else [_size_file(run, sizes[0], value) for value in sizes[1]]


def _size_file(run: Run, name: str, value: int) -> Path:
    return run.path / f"{name}-{value}.json"


def _size_tables(runs: Sequence[Run], out: Path, sizes: Range) -> list[str]:
    config, scores = _config(runs[0]), _scores_by_size(runs, out, sizes)
    name, values = sizes
    measures = [name for name in next(iter(scores.values()))[values[0]][0] if name not in _HIDDEN]
    return [
        _table(
            f"{config.recipe}, trained with {name} {config.env.kwargs[name]}, {measure} with {name}:",
            [str(value) for value in values],
            {
                label: [[seed_scores[measure] for seed_scores in by_value[value]] for value in values]
                for label, by_value in scores.items()
            },
        )
        for measure in measures
    ]


def _table(title: str, columns: Sequence[str], rows: dict[str, list[list[float]]]) -> str:
    """Return a table with one row per method; each cell summarizes the scores over seeds."""
    lines = [title, "", f"| method | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    lines += [f"| {label} | {' | '.join(map(_cell, cells))} |" for label, cells in rows.items()]
    return "\n".join(lines)


def _config(run: Run) -> TeamTaskConfig:
    assert isinstance(run.config, TeamTaskConfig)
    return run.config


def _play(player: TeamPolicy | Rule, config: TeamTaskConfig, seed: int) -> Scores:
    with one_thread():
        return evaluate_team(
            player, config.env, config.eval_episodes, derive_seed(seed, "evaluation")
        ).summary()


def _load_or_play(file: Path, play: Callable[[], Scores]) -> Scores:
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
    """Format a number with three or four digits, large numbers in thousands or millions."""
    for scale, suffix in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= 10 * scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.3g}"

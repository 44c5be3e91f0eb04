"""Tables of measures of teams, such as the return, for trained and rule-based policies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.files import read_numbers, write_atomically
from scrubjay.experiments.measurements import markdown
from scrubjay.experiments.recipes.registry import Range, size_range
from scrubjay.experiments.resources import one_thread
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.evaluation import Rule, evaluate_team
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.runs.retention import FIELDS
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.statistics import format_interval, group_runs
from scrubjay.experiments.tasks.teams import find_known_team

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
    own = [run for run in runs if isinstance(run.config, TeamTaskConfig) and "episodic_return" in run.result]
    return group_runs(own, "recipe")


def _measure_table(runs: Sequence[Run], out: Path) -> str:
    config = _config(runs[0])
    groups = group_runs(runs, "label").items()
    scores = {label: [run.result for run in group] for label, group in groups} | _score_rules(
        runs, config, out
    )
    # Rules do not train, so they have no scores over time.
    names = [name for name in next(iter(scores.values()))[0] if name not in (*_HIDDEN, *FIELDS)]
    rows = {
        label: [[result[name] for result in results] for name in names] for label, results in scores.items()
    }
    return _table(f"{config.recipe}, means over {config.eval_episodes} episodes:", names, rows)


def _score_rules(
    runs: Sequence[Run], config: TeamTaskConfig, out: Path, suffix: str = ""
) -> dict[str, list[Scores]]:
    """Return the scores of each rule-based policy by its label `rule: <name>`, with one entry per seed."""
    scores: dict[str, list[Scores]] = {}
    for rule, make in find_known_team(config.env.id).rules().items():
        for seed in dict.fromkeys(run.config.seed for run in runs):
            file = out / f"{config.recipe}-rule-{rule}-s{seed}{suffix}.json"
            play = partial(_play, partial(make, seed), config, seed)
            scores.setdefault(f"rule: {rule}", []).append(_load_or_play(file, play))
    return scores


def _scores_by_size(runs: Sequence[Run], out: Path, sizes: Range) -> dict[str, dict[int, list[Scores]]]:
    """Return `scores[label][team_size]`, a list with one entry per seed.

    Runs without a shared actor are omitted. Rule-based policies have the labels `rule: <name>`.
    """
    name, values = sizes
    scores: dict[str, dict[int, list[Scores]]] = {}
    for value in values:
        config = _config(runs[0])
        config = dataclasses.replace(
            config, env=dataclasses.replace(config.env, kwargs={**config.env.kwargs, name: value})
        )
        by_label: dict[str, list[Scores]] = {}
        for run in runs:
            if _config(run).policy.shared and not _config(run).policy.identity:
                play = partial(_play, partial(run.team_policy_for, config.env), config, run.config.seed)
                by_label.setdefault(run.config.label, []).append(
                    _load_or_play(_size_file(run, name, value), play)
                )
        for label, own in (by_label | _score_rules(runs, config, out, f"-{name}-{value}")).items():
            scores.setdefault(label, {})[value] = own
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
    lines = [[label, *map(_cell, cells)] for label, cells in rows.items()]
    return f"{title}\n\n{markdown(['method', *columns], lines, '---')}"


def _config(run: Run) -> TeamTaskConfig:
    assert isinstance(run.config, TeamTaskConfig)
    return run.config


def _play(make_player: Callable[[], TeamPolicy | Rule], config: TeamTaskConfig, seed: int) -> Scores:
    with one_thread():
        seed_of_episodes = derive_seed(seed, "evaluation")
        return evaluate_team(make_player(), config.env, config.eval_episodes, seed_of_episodes).summary()


def _load_or_play(file: Path, play: Callable[[], Scores]) -> Scores:
    if not file.exists():
        write_atomically(file, json.dumps(play()) + "\n")
    return read_numbers(file)


def _cell(scores: Sequence[float]) -> str:
    return format_interval(scores, _short)


def _short(value: float) -> str:
    """Format a number with three or four digits, large numbers in thousands or millions."""
    for scale, suffix in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= 10 * scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.3g}"

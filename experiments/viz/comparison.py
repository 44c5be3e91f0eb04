"""Report of a comparison: a table of all runs, tests on longer tasks, and plots."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.files import read_numbers, write_atomically
from scrubjay.experiments.measurements import markdown, processor, version
from scrubjay.experiments.recipes.registry import longer_range
from scrubjay.experiments.resources import one_thread
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.evaluation import evaluate
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig, TrainConfig
from scrubjay.experiments.runs.retention import FIELDS as RETENTION
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.runs.supervised import SupervisedConfig
from scrubjay.experiments.statistics import format_interval, group_runs, interquartile_mean
from scrubjay.experiments.viz.teams import size_files, team_plots, team_tables

LONGER_FILE = "longer.json"


def write_report(
    runs: Sequence[Run], out: Path, command: str, partial_runs: Sequence[Run] = ()
) -> list[Path]:
    """Write the tables, scores and plots of a comparison, and return the paths of the files.

    The files are table.md, scores.jsonl, curves.png and plots of the tests. The tests include task sizes that
    do not occur in training. The plots are longer.png for policies and RECIPE-sizes.png for teams. Supervised
    experiments have one plot per kind of size, such as lengths.png and items.png, and state.png if results
    contain the size of the memory state. table.md also names the `partial_runs`, which are left
    out, and the runs that have no curve because no training episode ended.
    """
    from scrubjay.experiments.viz.accuracy import plot_counts, plot_spans, plot_state
    from scrubjay.experiments.viz.curves import has_curve, plot_longer, plot_runs

    longer = {run.path: score_longer_tasks(run) for run in runs}
    supervised = group_runs([run for run in runs if isinstance(run.config, SupervisedConfig)], "axes")
    runs_with_curve = [run for run in runs if has_curve(run)]
    sections = [_header(runs, command), final_table(runs), *_retention_tables(runs)]
    sections += [f"{run.path.name} is {word}." for run in runs for word in run.loss_warnings]
    if partial_runs:
        names = ", ".join(run.path.name for run in partial_runs)
        sections.append(f"Left out, since training has not finished: {names}.")
    if names := [run.path.name for run in runs if run not in runs_with_curve]:
        sections.append(f"No curve, since no training episode ended: {', '.join(names)}.")
    sections += [*_longer_tables(runs, longer), *team_tables(runs, out)]
    for group in supervised.values():
        if _have_state_bytes(group):
            sections.append(_size_table(group))
        sections += _accuracy_tables(group)
    write_atomically(out / "table.md", "\n\n".join(sections) + "\n")
    paths = [out / "table.md", write_scores(runs, longer, out, command)]
    paths += [plot_runs(runs_with_curve, out / "curves.png")] if runs_with_curve else []
    paths += team_plots(runs, out)
    tables = [(run, longer[run.path]) for run in runs if longer[run.path]]
    if tables:
        paths.append(plot_longer(tables, out / "longer.png"))
    for (count, span), group in supervised.items():
        paths.append(plot_spans(group, out / f"{span}s.png"))
        paths.append(plot_counts(group, out / f"{count.removeprefix('num_')}.png"))
        if _have_state_bytes(group):
            paths.append(plot_state(group, out / "state.png"))
    return paths


def score_longer_tasks(run: Run, episodes: int = 100) -> dict[int, float]:
    """Return a dict from the value of the task's length setting to the score of a trained policy.

    The dict is empty if the recipe has no length setting. A score is the success rate, or the return if the
    task has no success measure. Scores are computed once and then stored in longer.json.
    """
    config = run.config
    longer = longer_range(config.recipe)
    if not isinstance(config, TrainConfig) or longer is None:
        return {}
    file = run.path / LONGER_FILE
    if not file.exists():
        name, factors = longer
        training_value = int(config.env.kwargs[name])
        scores = {}
        for factor in factors:
            env = dataclasses.replace(config.env, kwargs={**config.env.kwargs, name: training_value * factor})
            with one_thread():
                policy, seed = run.policy_for(env), derive_seed(config.seed, "evaluation")
                scores[training_value * factor] = _score(evaluate(policy, env, episodes, seed).summary())
        write_atomically(file, json.dumps(scores) + "\n")
    stored_scores = read_numbers(file)
    if not all(value.isdecimal() for value in stored_scores):
        raise ValueError(
            f"{file} is damaged: keys {', '.join(stored_scores)} must be integers; delete the file to "
            "compute the scores again"
        )
    return {int(value): score for value, score in stored_scores.items()}


def list_cached_files(run: Run) -> list[Path]:
    """Return the files that cache scores of a run. A change of the weights makes these scores invalid."""
    return [run.path / LONGER_FILE, *size_files(run)]


def _score(summary: dict[str, Any]) -> float:
    return float(summary["success" if "success" in summary else "episodic_return"])


def _header(runs: Sequence[Run], command: str) -> str:
    counts = sorted({len(group) for group in group_runs(runs, "recipe", "label").values()})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    scores = f"Scores: mean and range over {seeds} seeds."
    if counts[-1] >= 4:
        scores = f"Scores: interquartile mean over {seeds} seeds with 95 % bootstrap interval"
        scores += "; with fewer than 4 seeds, the mean and the range of the seeds." if counts[0] < 4 else "."
    if counts[-1] == 1:
        scores = "Scores are from a single seed; other seeds may differ."
    configs: list[Any] = [run.config for run in runs if run.config.recipe in ("ppo", "team")]
    names = {config.recipe: config.env.id for config in configs}
    tasks = "".join(f" The recipe {recipe} is `{one_line(name)}`." for recipe, name in names.items())
    return (
        f"`{command}`\n\n"
        f"{version()}, torch {torch.__version__}, {processor()}, one thread per run, {date.today()}. "
        f"{scores}{tasks}"
    )


def final_table(runs: Sequence[Run]) -> str:
    """Return the Markdown table of scores, steps and times of each memory or method."""
    heading = "method" if isinstance(runs[0].config, TeamTaskConfig) else "memory"
    rows = []
    for (recipe, memory), group in group_runs(runs, "recipe", "label").items():
        results = [run.result for run in group]
        seconds = interquartile_mean([result["seconds"] for result in results])
        steps = [result["step"] for result in results]  # several if some runs were extended
        step_range = " to ".join(f"{count:,}" for count in dict.fromkeys((min(steps), max(steps))))
        scores = _cell([_score(result) for result in results])
        rate = f"{interquartile_mean(steps) / seconds:,.0f}"
        rows.append([recipe, memory, scores, step_range, f"{seconds:.0f}", rate])
    columns = ["recipe", heading, "score", "training steps", "training time, s", "steps/s"]
    return markdown(columns, rows, "---")


def _retention_tables(runs: Sequence[Run]) -> list[str]:
    """Return a table of the scores over training: best, and lowest after the task was first solved."""
    rows = []
    for (recipe, label), group in group_runs(runs, "recipe", "label").items():
        results = [run.result for run in group if "best" in run.result]
        if not results:
            continue
        counts = {
            name: f"{sum(bool(result.get(name)) for result in results)} of {len(results)}"
            if any("solved_at" in result for result in results)
            else ""
            for name in ("solved_step", "lost")
        }
        cells = {
            name: _cell(values) if (values := [each[name] for each in results if name in each]) else ""
            for name in ("final", "best", "lowest_after_solved")
        }
        source = "evaluations" if all(each["evaluations"] for each in results) else "training episodes"
        rows.append([recipe, label, *cells.values(), *counts.values(), source])
    columns = [
        "recipe",
        "method",
        "final score",
        "best",
        "lowest after solved",
        "solved",
        "lost",
        "best from",
    ]
    return [f"Scores over training:\n\n{markdown(columns, rows, '---')}"] if rows else []


def _longer_tables(runs: Sequence[Run], longer: dict[Path, dict[int, float]]) -> list[str]:
    tables = []
    for recipe, group in group_runs([run for run in runs if longer[run.path]], "recipe").items():
        setting = longer_range(recipe)
        assert setting is not None  # otherwise there are no scores
        values = list(longer[group[0].path])
        rows = [
            [memory, *(_cell([longer[run.path][value] for run in own]) for value in values)]
            for memory, own in group_runs(group, "label").items()
        ]
        table = markdown(["memory", *map(str, values)], rows, "---")
        tables.append(f"{recipe}, trained with {setting[0]} {values[0]}, tested with:\n\n{table}")
    return tables


def _have_state_bytes(runs: Sequence[Run]) -> bool:
    return all("state_bytes" in run.result for run in runs)


def _size_table(runs: Sequence[Run]) -> str:
    results = {(run.config.recipe, run.config.label): run.result for run in runs}
    rows = [
        [*names, f"{result['parameters']:,}", f"{result['state_bytes']:,}"]
        for names, result in results.items()
    ]
    return markdown(["recipe", "memory", "parameters", "state size per sequence, bytes"], rows, "---")


def _accuracy_tables(runs: Sequence[Run]) -> list[str]:
    tables = []
    for recipe, group in group_runs(runs, "recipe").items():
        config: Any = group[0].config
        count_label, span_label = config.axis_labels
        scores = {
            memory: [config.accuracies(run.result) for run in own]
            for memory, own in group_runs(group, "label").items()
        }
        spans = sorted({span for own in scores.values() for by_sizes in own for _, span in by_sizes})
        rows = []
        for memory, own in scores.items():
            for count in sorted({count for by_sizes in own for count, _ in by_sizes}):
                cells = (
                    [by_sizes[count, span] for by_sizes in own if (count, span) in by_sizes] for span in spans
                )
                rows.append([memory, count, *map(_cell, cells)])
        table = markdown(["memory", count_label, *spans], rows, "---")
        tables.append(f"{recipe}, accuracy by {count_label} and {span_label} in the test:\n\n{table}")
    return tables


def _cell(scores: Sequence[float]) -> str:
    return format_interval(scores, "{:.2f}".format)


def write_scores(
    runs: Sequence[Run], longer: Mapping[Path, Mapping[int, float]], out: Path, command: str
) -> Path:
    """Write scores.jsonl with task, memory, seed, test, score, return, steps, command and commit per line.

    `longer` maps the path of each run to its scores on longer tasks: a dict from the value of the task's
    length setting to the score.
    """
    provenance = {"command": command, "commit": version()}
    lines = [json.dumps({**row, **provenance}) + "\n" for run in runs for row in _rows(run, longer[run.path])]
    path = out / "scores.jsonl"
    write_atomically(path, "".join(lines))
    return path


def _rows(run: Run, longer: Mapping[int, float]) -> Iterator[dict[str, Any]]:
    config, result = run.config, run.result
    about = {"task": config.recipe, "memory": config.label, "seed": config.seed, "steps": result["step"]}
    measure = "success" if "success" in result else "episodic_return"
    score = {"measure": measure, "score": result[measure]}
    if "episodic_return" in result:
        score["return"] = result["episodic_return"]
    bounds = {name: result[f"{measure}_{name}"] for name in ("low", "high") if f"{measure}_{name}" in result}
    over_training = {name: result[name] for name in RETENTION if name in result}
    yield {**about, "test": {}, **score, **bounds, **over_training}
    setting = longer_range(config.recipe)
    for value, score in longer.items():
        assert setting is not None  # otherwise there are no scores
        yield {**about, "test": {setting[0]: value}, "measure": measure, "score": score}
    if isinstance(config, SupervisedConfig):
        for (count, span), score in config.accuracies(result).items():
            test = dict(zip(config.axes, (count, span), strict=True))
            yield {**about, "test": test, "measure": "success", "score": score}

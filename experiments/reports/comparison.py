"""What a comparison came to: one table of all runs, tests beyond what was trained for, and plots."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from scrubjay.experiments.evaluation.policy import evaluate
from scrubjay.experiments.kinds.reinforcement import AgentConfig
from scrubjay.experiments.kinds.supervised import SupervisedConfig
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.recipes.registry import longer_of
from scrubjay.experiments.reports.scores import write_scores
from scrubjay.experiments.reports.teams import size_files, team_plots, team_tables
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.device import one_thread
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.provenance import processor, version
from scrubjay.experiments.runs.reading import read_numbers
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.runs.statistics import bootstrap_interval, interquartile_mean

LONGER_FILE = "longer.json"


def write_report(runs: Sequence[Run], out: Path, command: str) -> list[Path]:
    """Write table.md, scores.jsonl, curves.png and plots of tests beyond training; return their paths.

    Of runs so short that no episode ended in training, table.md says that they have no curve.

    longer.png for trained policies, RECIPE-sizes.png for teams; for supervised experiments one plot for each
    size of the task, such as lengths.png and items.png, and state.png where results tell the bytes of state.
    """
    from scrubjay.experiments.reports.curves import has_curve, plot_longer, plot_runs

    longer = {run.path: success_when_longer(run) for run in runs}
    supervised: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if isinstance(run.config, SupervisedConfig):
            supervised.setdefault(run.config.axes, []).append(run)
    drawn = [run for run in runs if has_curve(run)]
    sections = [_header(runs, command), _final_table(runs), *_lost(runs), *_uncurved(runs, drawn)]
    sections += _longer_tables(runs, longer)
    sections += team_tables(runs, out)
    for alike in supervised.values():
        sections += [*_size_table(alike), *_accuracy_tables(alike)]
    write_atomically(out / "table.md", "\n\n".join(sections) + "\n")
    written = [out / "table.md", write_scores(runs, longer, out, command)]
    written += [plot_runs(drawn, out / "curves.png")] if drawn else []
    written += team_plots(runs, out)
    tables = [(run, longer[run.path]) for run in runs if longer[run.path]]
    if tables:
        written.append(plot_longer(tables, out / "longer.png"))
    for (count, span), alike in supervised.items():
        written += _accuracy_plots(alike, out, count.removeprefix("num_"), f"{span}s")
    return written


def _accuracy_plots(runs: Sequence[Run], out: Path, counts: str, spans: str) -> list[Path]:
    from scrubjay.experiments.reports.accuracy import plot_counts, plot_spans, plot_state

    written = [plot_spans(runs, out / f"{spans}.png"), plot_counts(runs, out / f"{counts}.png")]
    return [*written, plot_state(runs, out / "state.png")] if _tell_state(runs) else written


def success_when_longer(run: Run, episodes: int = 100) -> dict[int, float]:
    """Return the score of a trained policy by value of the recipe's difficulty; empty if it has none.

    The score is success, or return where success is not told. Kept in longer.json, computed once.
    """
    config = run.config
    longer = longer_of(config.recipe)
    if not isinstance(config, AgentConfig) or longer is None:
        return {}
    file = run.path / LONGER_FILE
    if not file.exists():
        name, factors = longer
        trained = int(config.env.kwargs[name])
        scores = {}
        for factor in factors:
            env = dataclasses.replace(config.env, kwargs={**config.env.kwargs, name: trained * factor})
            with one_thread():
                policy, seed = run.policy_in(env), derive_seed(config.seed, "evaluation")
                scores[trained * factor] = _score(evaluate(policy, env, episodes, seed).summary())
        write_atomically(file, json.dumps(scores) + "\n")
    found = read_numbers(file)
    if not all(value.isdecimal() for value in found):
        raise ValueError(f"{file} is damaged: {', '.join(found)}; delete it, and it is measured anew")
    return {int(value): score for value, score in found.items()}


def kept_files(run: Run) -> list[Path]:
    """Return where reports keep in a run's directory what its weights came to, which other weights void."""
    return [run.path / LONGER_FILE, *size_files(run)]


def _score(summary: dict[str, Any]) -> float:
    return float(summary["success" if "success" in summary else "episodic_return"])


def _header(runs: Sequence[Run], command: str) -> str:
    seeds = len({run.config.seed for run in runs})
    return (
        f"`{command}`\n\n"
        f"{version()}, torch {torch.__version__}, {processor()}, one thread per run, {date.today()}. "
        f"{_how_to_read(seeds)}"
    )


def _how_to_read(seeds: int) -> str:
    if seeds == 1:
        return "Scores of one seed: another may do better or worse."
    scores = f"Scores: interquartile mean over {seeds} seeds with 95 % bootstrap interval"
    return scores + (
        ", which with fewer than 4 seeds is the mean and the spread of the seeds." if seeds < 4 else "."
    )


def _final_table(runs: Sequence[Run]) -> str:
    contender = "method" if isinstance(runs[0].config, TeamTaskConfig) else "memory"
    lines = [
        f"| recipe | {contender} | score after training | steps | wall time of training, s | steps/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run.config.recipe, run.config.label), []).append(run.result)
    for (recipe, memory), results in groups.items():
        seconds = interquartile_mean([result["seconds"] for result in results])
        steps = sorted({result["step"] for result in results})  # several where some were extended
        rate = interquartile_mean([result["step"] for result in results]) / seconds
        scores = _cell([_score(result) for result in results])
        told = " to ".join(f"{count:,}" for count in dict.fromkeys((steps[0], steps[-1])))
        lines.append(f"| {recipe} | {memory} | {scores} | {told} | {seconds:.0f} | {rate:,.0f} |")
    return "\n".join(lines)


def _lost(runs: Sequence[Run]) -> list[str]:
    """Return a line for every run whose score is that of weights that are no numbers."""
    return [f"{run.path.name} is {word}." for run in runs for word in run.lost]


def _uncurved(runs: Sequence[Run], drawn: Sequence[Run]) -> list[str]:
    names = [run.path.name for run in runs if run not in drawn]
    return (
        [f"No curve, as no episode ended in so few steps of training: {', '.join(names)}."] if names else []
    )


def _longer_tables(runs: Sequence[Run], longer: dict[Path, dict[int, float]]) -> list[str]:
    tables = []
    for recipe in dict.fromkeys(run.config.recipe for run in runs if longer[run.path]):
        setting = longer_of(recipe)
        assert setting is not None  # or there were no scores
        groups: dict[str, list[dict[int, float]]] = {}
        for run in runs:
            if run.config.recipe == recipe:
                groups.setdefault(run.config.label, []).append(longer[run.path])
        values = list(next(iter(groups.values()))[0])
        lines = [
            f"{recipe}, trained at {setting[0]} {values[0]}, tested at:",
            "",
            "| memory | " + " | ".join(f"{value}" for value in values) + " |",
            "| --- " * (len(values) + 1) + "|",
        ]
        for memory, results in groups.items():
            cells = [_cell([result[value] for result in results]) for value in values]
            lines.append(f"| {memory} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return tables


def _tell_state(runs: Sequence[Run]) -> bool:
    return all("state_bytes" in run.result for run in runs)


def _size_table(runs: Sequence[Run]) -> list[str]:
    """Return what the models weigh and what they carry along, where results tell it."""
    if not _tell_state(runs):
        return []
    results = {(run.config.recipe, run.config.label): run.result for run in runs}
    lines = ["| recipe | memory | parameters | bytes of state of one sequence |", "| --- | --- | --- | --- |"]
    for (recipe, memory), result in results.items():
        lines.append(f"| {recipe} | {memory} | {result['parameters']:,} | {result['state_bytes']:,} |")
    return ["\n".join(lines)]


def _accuracy_tables(runs: Sequence[Run]) -> list[str]:
    tables = []
    for recipe in dict.fromkeys(run.config.recipe for run in runs):
        alike = [run for run in runs if run.config.recipe == recipe]
        config: Any = alike[0].config
        scores: dict[str, dict[tuple[int, int], list[float]]] = {}
        for run in alike:
            for sizes, score in config.accuracies(run.result).items():
                scores.setdefault(run.config.label, {}).setdefault(sizes, []).append(score)
        spans = sorted({span for by_sizes in scores.values() for _, span in by_sizes})
        counted, spanned = config.axis_labels
        lines = [
            f"{recipe}, questions answered right by {counted} in the test and {spanned}:",
            "",
            f"| memory | {counted} | " + " | ".join(map(str, spans)) + " |",
            "| --- " * (len(spans) + 2) + "|",
        ]
        for memory, by_sizes in scores.items():
            for count in sorted({count for count, _ in by_sizes}):
                cells = [_cell(by_sizes[count, span]) for span in spans]
                lines.append(f"| {memory} | {count} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return tables


def _cell(scores: Sequence[float]) -> str:
    if len(scores) == 1:
        return f"{scores[0]:.2f}"
    low, high = bootstrap_interval(scores)
    return f"{interquartile_mean(scores):.2f} [{low:.2f}, {high:.2f}]"

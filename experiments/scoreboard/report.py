"""Report of the scoreboard in Markdown: losses first, then a summary and a table for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scrubjay.experiments.cli.untrusted_text import printable
from scrubjay.experiments.measurements import markdown, select
from scrubjay.experiments.scoreboard.contenders import PEERS
from scrubjay.experiments.scoreboard.protocol import TASKS, difference, is_loss
from scrubjay.experiments.statistics import bootstrap_interval, interquartile_mean

Row = Mapping[str, Any]

FIELDS = {
    "task": str,
    "contender": str,
    "seed": int,
    "status": str,
    "error": str,
    "steps": int,
    "score": float | None,
    "training_score": float | None,
    "cpu_seconds": float | None,
}
"""Types of the fields that every row has. A run that crashed has the status `failed` and no numbers."""


def scores_of(rows: Sequence[Row], task: str, contender: str) -> list[float]:
    """Return the final scores of the finished runs, in the order of their seeds."""
    finished_rows = select(rows, task=task, contender=contender, status="finished")
    return [row["score"] for row in sorted(finished_rows, key=lambda row: row["seed"])]


def find_losses(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return the task, the memory and the peer of each loss."""
    return [
        (task, memory, peer)
        for task in _names(rows, "task")
        for memory in _names(rows, "contender")
        for peer in _names(rows, "contender")
        if memory not in PEERS and peer in PEERS and _both(rows, task, memory, peer)
        if is_loss(scores_of(rows, task, memory), scores_of(rows, task, peer))
    ]


def normalize(rows: Sequence[Row], contender: str) -> np.ndarray | None:
    """Return normalized scores `[seeds, tasks]`; None if runs of the contender are missing.

    On each task 0 is the lowest mean score of a contender, and 1 the highest. A run that crashed scores 0.
    """
    columns = []
    for task in _names(rows, "task"):
        own = sorted(select(rows, task=task, contender=contender), key=lambda row: row["seed"])
        means = [np.mean(s) for other in _names(rows, "contender") if (s := scores_of(rows, task, other))]
        if not own or not means:
            return None
        low, high = min(means), max(means)
        width = 1.0 if np.isclose(low, high) else high - low
        columns.append([0.0 if row["score"] is None else (row["score"] - low) / width for row in own])
    sizes = set(map(len, columns))
    return np.array(columns).T if len(sizes) == 1 else None


def make_report(rows: Sequence[Row], context: str) -> str:
    """Return the report. `context` describes the command and the machine."""
    losses = find_losses(rows)
    lost_tasks = {task for task, _, _ in losses}
    tasks = sorted(_names(rows, "task"), key=lambda task: task not in lost_tasks)
    sections = ["# Scoreboard", context, _describe_settings(rows), _loss_section(rows, losses)]
    sections += [_summary(rows, losses), *(_task_section(rows, task) for task in tasks)]
    failed_rows = select(rows, status="failed")
    if failed_rows:
        lines = [[row["task"], row["contender"], row["seed"], _cell(row["error"])] for row in failed_rows]
        table = markdown(["task", "contender", "seed", "error"], lines, "---")
        sections.append(f"## Runs that crashed\n\n{table}")
    return "\n\n".join(sections) + "\n"


def _loss_section(rows: Sequence[Row], losses: Sequence[tuple[str, str, str]]) -> str:
    text = (
        "A memory loses a task if the whole 95 % interval of the difference to RecurrentPPO, by Welch's t, "
        "lies below 0."
    )
    if not losses:
        return f"## Losses\n\n{text} There are none."
    lines = []
    for task, memory, peer in losses:
        ours, theirs = scores_of(rows, task, memory), scores_of(rows, task, peer)
        gap, low, high = difference(ours, theirs)
        means = [_number(float(np.mean(ours))), _number(float(np.mean(theirs)))]
        lines.append([task, memory, peer, *means, f"{_number(gap)} [{_number(low)}, {_number(high)}]"])
    columns = ["task", "memory", "peer", "its mean score", "that of the peer", "difference"]
    return f"## Losses\n\n{text}\n\n{markdown(columns, lines)}"


def _summary(rows: Sequence[Row], losses: Sequence[tuple[str, str, str]]) -> str:
    ranks: dict[str, list[int]] = {}
    for task in _names(rows, "task"):
        for rank, contender in enumerate(_ranking(rows, task), 1):
            ranks.setdefault(contender, []).append(rank)
    table = []
    for contender in _names(rows, "contender"):
        own = select(rows, contender=contender)
        scores = normalize(rows, contender)
        mean = -1.0 if scores is None else interquartile_mean(scores)
        rank = float(np.mean(ranks[contender])) if contender in ranks else float("inf")
        line = [
            contender,
            "runs are missing" if scores is None else _with_interval(scores),
            f"{rank:.1f}" if contender in ranks else "",
            "" if contender in PEERS else len({task for task, memory, _ in losses if memory == contender}),
            len(select(own, status="failed")),
            f"{sum(row['cpu_seconds'] or 0 for row in own):,.0f}",
        ]
        table.append((-mean, rank, line))
    columns = ["contender", "normalized score", "mean rank", "tasks lost", "crashed", "CPU seconds"]
    return (
        "## Summary\n\nInterquartile mean over all runs and tasks, with a 95 % bootstrap interval, "
        "stratified by task. On each task 0 is the lowest mean score of a contender, 1 is the highest, and "
        "a run that crashed has 0. CPU seconds are the sum over all runs.\n\n"
        + markdown(columns, [line for *_, line in sorted(table, key=lambda entry: entry[:2])])
    )


def _task_section(rows: Sequence[Row], name: str) -> str:
    task = TASKS[name]
    paper_scores = {
        each.contender: f"{_number(each.score)} ({each.frames:,} frames)" for each in task.paper_scores
    }
    lines = []
    for rank, contender in enumerate(_ranking(rows, name), 1):
        own = select(rows, task=name, contender=contender, status="finished")
        training = [row["training_score"] for row in own if row["training_score"] is not None]
        lines.append(
            [
                contender,
                rank,
                _with_interval(scores_of(rows, name, contender)),
                _number(interquartile_mean(training)) if training else "",
                len(own),
                f"{np.mean([row['cpu_seconds'] for row in own]):,.0f}",
                paper_scores.get(contender, ""),
            ]
        )
    columns = ["contender", "rank", "score", "last 100 training episodes", "runs", "CPU seconds", "published"]
    settings = ", ".join(f"{key}={value}" for key, value in task.kwargs.items())
    about = f"`{task.env_id}`{f' with {settings}' if settings else ''}"
    sources = [
        f"Published score of {each.contender}, {paper_scores[each.contender]}: {each.source}."
        for each in task.paper_scores
    ]
    return "\n\n".join([f"## {name}", about, markdown(columns, lines), *sources])


def _describe_settings(rows: Sequence[Row]) -> str:
    finished_rows = select(rows, status="finished")
    processors = sorted({row["processor"] for row in finished_rows})
    versions = sorted({f"{name} {v}" for row in finished_rows for name, v in row["versions"].items()})
    settings = sorted({", ".join(f"{k} {v}" for k, v in row["settings"].items()) for row in finished_rows})
    return _cell(
        "Scores are interquartile means of the final evaluation with 95 % bootstrap intervals. Versions of "
        f"all rows: {', '.join(versions)}. Processors: {', '.join(processors)}. "
        f"Settings: {'; '.join(settings)}."
    )


def _names(rows: Sequence[Row], field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))


def _both(rows: Sequence[Row], task: str, *contenders: str) -> bool:
    return all(scores_of(rows, task, contender) for contender in contenders)


def _ranking(rows: Sequence[Row], task: str) -> list[str]:
    """Return the contenders with finished runs, best first."""
    scores = {name: scores_of(rows, task, name) for name in _names(rows, "contender")}
    return sorted(filter(scores.get, scores), key=lambda name: -interquartile_mean(scores[name]))


def _with_interval(scores: Any) -> str:
    low, high = bootstrap_interval(scores)
    return f"{_number(interquartile_mean(scores))} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _cell(text: str) -> str:
    """Return a text for a cell of a table."""
    return printable(" ".join(text.split())).replace("|", "\\|")

"""Leaderboard: ranks over all tasks and a ranked table per task, from the JSON-lines files of results."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import ROOT

from scrubjay import memory
from scrubjay.experiments.measurements import markdown
from scrubjay.experiments.recipes.registry import task_title
from scrubjay.experiments.statistics import bootstrap_interval, interquartile_mean

FEW = 4
"""Seeds below which an interval is the range of the seeds."""
FEWEST_CONTENDERS = 5
"""Smallest number of memories with which a task counts in the ranks."""
FEWEST_TASKS = 3
"""Smallest number of such tasks with which a memory is in the table of ranks."""

Row = Mapping[str, Any]

_VARIANTS = {
    "rewards as they come": "without scaled rewards",
    "no clock": "without clock",
    "step size 7e-4": "learning rate 7e-4 that decays to 0",
    "step size 2e-3 to the end": "constant learning rate 2e-3",
    "slots of 16 chunks of 16": "default sizes of `elmur`",
    "64 wide": "width 64",
    "step size 1e-3": "learning rate 1e-3",
    "256 whole episodes a batch": "256 whole episodes per batch",
}
"""Readable names of the variants of tasks in the files."""
_MEASURES = {"success": "success rate", "episodic_return": "return per episode"}

_ABOUT = f"""\
This page ranks the memories of each task. Every score has a line per seed in a JSON-lines file of the
repository.

A cell has the interquartile mean of the seeds with a 95 % bootstrap interval. With fewer than {FEW} seeds it
has the mean, the lowest and the highest seed. The best score of a task is bold. Equal scores share a rank,
which is marked with `=`. An interval that overlaps the best one is no proof of a difference.

The [results by question](../results/index.md) explain the tasks. Some results have only
[tables](../../experiments/results/README.md)."""
_ABOUT_RANKS = f"""\
The mean rank is over all tasks with at least {FEWEST_CONTENDERS} memories. Variants of a task, such as
another learning rate, do not count. The memories were measured on different tasks. The table therefore also
has the share of the other memories of a task that a memory beats. A shared rank counts half. The table is
sorted by this share."""


def read_scores(results: Path) -> Iterator[Row]:
    """Yield the scores of all results, except those of seeds used for tuning."""
    for path in sorted(results.rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if {"task", "memory", "seed", "score", "command"} <= row.keys() and not row.get("development"):
                yield {**row, "file": path.relative_to(ROOT).as_posix()}


def leaderboard(scores: Iterable[Row]) -> str:
    """Return the leaderboard as Markdown: the ranks, and a section per task."""
    rows_by_task: dict[str, list[Row]] = defaultdict(list)
    for row in scores:
        rows_by_task[row["task"]].append(row)
    parts = ["# Leaderboard", _ABOUT]
    if ranks := _ranks(rows_by_task):
        parts += ["## Ranks over all tasks", _ABOUT_RANKS, ranks]
    for task, rows in sorted(rows_by_task.items(), key=lambda item: title_of(item[0]).lower()):
        parts += [f"## {title_of(task)}", *_section(rows)]
    return "\n\n".join(parts) + "\n"


def title_of(task: str) -> str:
    """Return the readable title of a task of the files: that of its recipe, and its variants."""
    recipe, *variants = task.split(", ")
    return ", ".join([task_title(recipe), *(_VARIANTS.get(variant, variant) for variant in variants)])


def format_score(scores: Sequence[float]) -> str:
    """Return the mean of the seeds with an interval; without an interval if there is one seed."""
    if len(scores) < FEW:
        mean, low, high = float(np.mean(scores)), min(scores), max(scores)
    else:
        mean, (low, high) = interquartile_mean(scores), bootstrap_interval(scores)
    return f"{mean:.2f} [{low:.2f},\u00a0{high:.2f}]" if len(scores) > 1 else f"{mean:.2f}"


def _section(rows: Sequence[Row]) -> list[str]:
    """Return the parts of a task's section: conditions, ranking, tests, and commands."""
    ranked_rows = [row for row in rows if not row.get("test")]
    parts = []
    if ranked_rows:
        measures = sorted({_MEASURES.get(row.get("measure", ""), "score") for row in ranked_rows})
        parts += [f"Score: {' and '.join(measures)}.", _ranking(ranked_rows)]
    tests = _tests([row for row in rows if row.get("test")])
    if tests:
        parts += ["The same models in other tests:", *tests]
    files = ", ".join(f"[{file}](../../{file})" for file in sorted({row["file"] for row in rows}))
    commands = "\n".join(f"- `{command}`" for command in dict.fromkeys(row["command"] for row in rows))
    return [
        *parts,
        f"<details><summary>Commands and files</summary>\n\n{commands}\n- Scores: {files}\n\n</details>",
    ]


def _ranking(rows: Sequence[Row]) -> str:
    """Return the ranked table of a task. The best score is bold."""
    by_memory = _by_memory(rows)
    ranks = _rank_memories(by_memory)
    lines = []
    for name in sorted(by_memory, key=lambda name: (ranks[name], name)):
        of = by_memory[name]
        score = format_score(_scores(of))
        rank = f"{1 + sum(other < ranks[name] for other in ranks.values())}"
        rank += " =" if list(ranks.values()).count(ranks[name]) > 1 else ""
        steps = f"{max(row.get('steps', 0) for row in of):,}"
        best = ranks[name] == min(ranks.values()) and len(ranks) > 1
        seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in of}))
        lines.append((rank, _link(name), f"**{score}**" if best else score, seeds, steps))
    return markdown(("rank", "memory", "score", "seeds", "training steps"), lines, "---")


def _tests(rows: Sequence[Row]) -> list[str]:
    """Return a table per group of test conditions. The setting with most values has a column per value."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for names in dict.fromkeys(tuple(sorted(row["test"])) for row in rows):
        alike = [row for row in rows if tuple(sorted(row["test"])) == names]
        along = max(names, key=lambda name: len({row["test"][name] for row in alike}))
        for row in alike:
            rest = tuple((name, row["test"][name]) for name in names if name != along)
            groups[along, rest].append(row)
    parts = []
    for (along, rest), alike in groups.items():
        values = sorted({row["test"][along] for row in alike})
        head = ", ".join([*(f"{_words(name)} {value}" for name, value in rest), _words(along)])
        lines = []
        for name, of in sorted(_by_memory(alike).items()):
            cells = [[row["score"] for row in of if row["test"][along] == value] for value in values]
            lines.append((_link(name), *(format_score(cell) if cell else "" for cell in cells)))
        parts.append(markdown((head, *(f"{value:,}" for value in values)), lines, "---"))
    return parts


def _ranks(rows_by_task: Mapping[str, Sequence[Row]]) -> str:
    """Return the table of mean ranks over tasks; empty if no memory has enough tasks."""
    places: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for task, rows in rows_by_task.items():
        by_memory = _by_memory([row for row in rows if not row.get("test")])
        if len(by_memory) < FEWEST_CONTENDERS or ", " in task:
            continue
        ranks = _rank_memories(by_memory)
        for name, rank in ranks.items():
            places[name].append((rank, (len(ranks) - rank) / (len(ranks) - 1)))
    means = {name: np.mean(of, axis=0) for name, of in places.items() if len(of) >= FEWEST_TASKS}
    order = sorted(means, key=lambda name: (-means[name][1], name))
    lines = [
        (_link(name), f"{means[name][0]:.1f}", f"{100 * means[name][1]:.0f} %", str(len(places[name])))
        for name in order
    ]
    left_out = ", ".join(_link(name) for name in sorted(places) if name not in means)
    note = f"\n\nMeasured on fewer than {FEWEST_TASKS} such tasks: {left_out}." if left_out else ""
    head = ("memory", "mean rank", "share of others beaten", "tasks")
    return markdown(head, lines, "---") + note if lines else ""


def _rank_memories(by_memory: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Return the rank of each memory by its mean score, as the tables show it."""
    return _rank({name: round(float(np.mean(_scores(rows))), 2) for name, rows in by_memory.items()})


def _rank(means: Mapping[str, float]) -> dict[str, float]:
    """Return the rank of each name, 1 for the highest mean. Equal means share the mean of their ranks."""
    values = np.array(list(means.values()))
    return {
        name: float((values > mean).sum() + ((values == mean).sum() + 1) / 2) for name, mean in means.items()
    }


def _by_memory(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["memory"]].append(row)
    return groups


def _scores(rows: Iterable[Row]) -> list[float]:
    return [row["score"] for row in rows]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _link(name: str) -> str:
    return f"[`{name}`](memories/{name}.rst)" if name in memory.list_memories() else f"`{name}`"

"""What was answered, as a table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from statistics import fmean
from typing import Any

from scrubjay.experiments.quality.answers.views import LABELS
from scrubjay.experiments.runs.provenance import processor, version
from scrubjay.experiments.runs.records import markdown
from scrubjay.experiments.words.foreign import one_line

_READ: Mapping[str, str] = {"": "", "first": ", first fact", "newest": ", newest fact"}
_MEASURES: Mapping[str, str] = {
    "needed": "recall",
    "answer held": "held",
    "outdated first": "stale",
    "exact": "exact",
    "substring": "substring",
    "F1": "f1",
    "ROUGE-L": "rouge_l",
    "judged right": "judged",
}
EXPLAINED = """\
"needed": the part of the records that answer a question which was shown. "answer held": how often what was
shown has the words of a right answer. "outdated first": how often a fact that was replaced stands above the
one that holds. "exact" to "ROUGE-L" compare the answer with a right one. "tokens": shown for a question."""
"""What the columns are."""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for every arm, of each ability and of all; measures that no question has are left out."""
    measures = {
        label: name for label, name in _MEASURES.items() if any(row[name] is not None for row in rows)
    }
    abilities = list(dict.fromkeys(row["ability"] for row in rows))
    lines = []
    for ability in [*abilities, None] if len(abilities) > 1 else abilities:
        of_ability = [row for row in rows if ability in (None, row["ability"])]
        for arm in LABELS:
            for reader in dict.fromkeys(row["reader"] for row in of_ability):
                some = [row for row in of_ability if (row["arm"], row["reader"]) == (arm, reader)]
                if some:
                    lines.append(_line(ability or "all", arm, reader, some, measures.values()))
    return markdown(["arm", "questions of", "number", *measures, "tokens"], lines)


def head(command: str, window: int, asked: Mapping[str, tuple[str, str]]) -> str:
    """Return what a reader of the table must know; `asked` are models and prompts by what they do."""
    told = [
        f"`{one_line(command)}`",
        f"{version()}, Python {sys.version.split()[0]}, {processor()}, {date.today()}.",
        f"Shown are {window:,} tokens at most. {EXPLAINED}",
    ]
    for task, (model, prompt) in asked.items():
        told.append(f"{task} by {one_line(model)}, which was asked:\n\n```\n{prompt}\n```")
    return "\n\n".join(told)


def _line(
    ability: str, arm: Any, reader: str, rows: Sequence[Mapping[str, Any]], measures: Iterable[str]
) -> list[str]:
    cut = sum(row["cut"] for row in rows)
    label = f"{LABELS[arm]}{_READ.get(reader, '')}"
    if cut and arm == "full":
        label += f", cut for {cut:,} of {len(rows):,}"
    means = [_mean(rows, lambda row, name=name: row[name]) for name in measures]
    tokens = f"{fmean(row['tokens'] for row in rows):,.0f}"
    return [label, one_line(ability).replace("|", "/"), f"{len(rows):,}", *means, tokens]


def _mean(rows: Iterable[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float | None]) -> str:
    known = [one for row in rows if (one := value(row)) is not None]
    return f"{fmean(known):.3f}" if known else "-"

"""Report of the saved answers as a table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from statistics import fmean
from typing import Any

from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.quality.answers.views import LABELS
from scrubjay.experiments.runs.provenance import processor, version
from scrubjay.experiments.runs.records import markdown

_READER_LABELS: Mapping[str, str] = {"": "", "first": ", first fact", "newest": ", newest fact"}
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
COLUMN_NOTES = """\
"needed": fraction of the records needed for the answer that are shown. "answer held": fraction of questions
with a correct answer in the shown text. "outdated first": fraction of questions with a replaced fact above
the current one. "exact" to "ROUGE-L" compare the answer with the reference. "tokens": mean number of tokens
shown per question."""
"""Explanation of the columns."""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with rows by ability and arm, and rows for all abilities together.

    Measures without any value are omitted.
    """
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
    return markdown(["arm", "question type", "questions", *measures, "tokens"], lines)


def head(command: str, window: int, prompts: Mapping[str, tuple[str, str]]) -> str:
    """Return the text above the table; `prompts` maps each task to its model and prompt."""
    paragraphs = [
        f"`{one_line(command)}`",
        f"{version()}, Python {sys.version.split()[0]}, {processor()}, {date.today()}.",
        f"At most {window:,} tokens are shown. {COLUMN_NOTES}",
    ]
    for task, (model, prompt) in prompts.items():
        paragraphs.append(f"{task} by {one_line(model)}, with this prompt:\n\n```\n{prompt}\n```")
    return "\n\n".join(paragraphs)


def _line(
    ability: str, arm: Any, reader: str, rows: Sequence[Mapping[str, Any]], measures: Iterable[str]
) -> list[str]:
    cut = sum(row["cut"] for row in rows)
    label = f"{LABELS[arm]}{_READER_LABELS.get(reader, '')}"
    if cut and arm == "full":
        label += f", cut for {cut:,} of {len(rows):,}"
    means = [_mean(rows, lambda row, name=name: row[name]) for name in measures]
    tokens = f"{fmean(row['tokens'] for row in rows):,.0f}"
    return [label, one_line(ability).replace("|", "/"), f"{len(rows):,}", *means, tokens]


def _mean(rows: Iterable[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float | None]) -> str:
    numbers = [one for row in rows if (one := value(row)) is not None]
    return f"{fmean(numbers):.3f}" if numbers else "-"

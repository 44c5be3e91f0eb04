"""Trace of a memory bank: one step per record in writing order, linked to the record that it replaced."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from scrubjay.experiments.viz.trace import Recall, Step, Trace
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.record import Hit


def trace_bank(
    bank: MemoryBank, title: str, most: int = 2_000, query: str | None = None, k: int = 10
) -> Trace:
    """Return the trace of the latest `most` records of a bank in writing order.

    Each record is one step, which recalls the record that it supersedes. A `query` adds a last step. This
    step recalls the `k` best matches of the query, weighted by score, and its text explains each score.
    Raises ValueError if the bank is empty, or `most` or `k` is below 1.
    """
    if most < 1:
        raise ValueError(f"most={most}: must be at least 1")
    rows = deque(bank.export(), maxlen=most)
    if not rows:
        raise ValueError(f"{title} has no records; add one with `scrubjay memory add`")
    count, places = len(bank), {row["id"]: place for place, row in enumerate(rows)}
    replaced_by = {row["supersedes"]: place for place, row in enumerate(rows) if row["supersedes"]}
    # The clock may have been set back, but times in a trace must not decrease.
    times = itertools.accumulate((float(row["created"]) for row in rows), max)
    steps = tuple(
        Step(
            time - float(rows[0]["created"]),
            text=_format_record(row, replaced_by),
            choice=_describe_record(row),
            recalls=recalls,
        )
        for time, row, recalls in zip(
            times, rows, (_recall_superseded(row, places) for row in rows), strict=True
        )
    )
    importance: list[float | None] = [float(row["importance"]) for row in rows]
    wordings: list[float | None] = [1.0 + len(row["sayings"]) for row in rows]
    if query is not None:
        steps += (_build_query_step(bank, query, k, places, steps[-1].time),)
        importance, wordings = [*importance, None], [*wordings, None]
    summary = f"{count:,}" if count == len(rows) else f"latest {len(rows):,} of {count:,}"
    return Trace(
        kind="agent",
        title=title,
        steps=steps,
        about={"records": summary, "since": _format_time(rows[0]["created"])},
        unit="seconds",
        tracks={"importance": tuple(importance), "wordings": tuple(wordings)},
    )


def _build_query_step(bank: MemoryBank, query: str, k: int, places: Mapping[str, int], time: float) -> Step:
    """Return the step of a query; the text of the step explains the score of each result."""
    hits = bank.search(query, k, explain=True)
    lines = [query, *(describe_hit(hit, places.get(hit.id)) for hit in hits)]
    matches = [(places[hit.id], max(hit.score, 0.0)) for hit in hits if hit.id in places]
    recall = Recall.from_weights("query", *zip(*matches, strict=True)) if matches else None
    return Step(
        time,
        text="\n".join(lines if hits else [query, "no results"]),
        choice="query",
        recalls=() if recall is None else (recall,),
    )


def describe_hit(hit: Hit, place: int | None) -> str:
    """Return one line for a search result: its step in the trace, its score and why it has this score."""
    where = "an older record, not shown" if place is None else f"step {place}"
    why = "" if hit.explanation is None else f": {hit.explanation.summary}"
    return f"{where}, score {hit.score:.3g}{why}"


def _recall_superseded(row: Mapping[str, Any], places: Mapping[str, int]) -> tuple[Recall, ...]:
    place = places.get(row["supersedes"])
    return () if place is None else (Recall.from_weights("superseded record", [place], [1.0]),)


def _format_record(row: Mapping[str, Any], replaced_by: Mapping[str, int]) -> str:
    """Return the text of a record with all its wordings and its period of validity."""
    lines = [row["text"], *(f"other wording: {saying['text']}" for saying in row["sayings"])]
    lines.append(f"observed {_format_time(row['observed'])}")
    if row["valid_from"] is not None:
        lines.append(f"valid from {_format_time(row['valid_from'])}")
    if row["valid_to"] is not None:
        after = replaced_by.get(row["id"])
        lines.append(
            f"valid until {_format_time(row['valid_to'])}{'' if after is None else f': see step {after}'}"
        )
    return "\n".join(lines)


def _describe_record(row: Mapping[str, Any]) -> str:
    namespace = f" of {'/'.join(row['namespace'])}" if row["namespace"] else ""
    return f"{row['kind']}{namespace}, source: {row['trust']}; {row['id']}"


def _format_time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"

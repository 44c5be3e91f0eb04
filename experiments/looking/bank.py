"""A memory bank as a trace: its records as they were written, and what each of them replaced."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from scrubjay.experiments.looking.trace import Recall, Step, Trace
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.file.record import Hit


def trace_bank(
    bank: MemoryBank, title: str, most: int = 2_000, query: str | None = None, k: int = 10
) -> Trace:
    """Return the newest `most` records of a bank in the order of writing.

    A step recalls the record that it supersedes. With a `query` a last step asks it, and recalls those of the
    `k` records found that are shown, each by its score; its text says why each came. Raises ValueError if
    there is no record, or `most` or `k` is below 1.
    """
    if most < 1:
        raise ValueError(f"most={most}: at least 1 record is shown")
    rows = deque(bank.export(), maxlen=most)
    if not rows:
        raise ValueError(f"{title} holds no record yet; `scrubjay memory add` writes one")
    count, places = len(bank), {row["id"]: place for place, row in enumerate(rows)}
    replaced_by = {row["supersedes"]: place for place, row in enumerate(rows) if row["supersedes"]}
    # A clock may have been set back.
    times = itertools.accumulate((float(row["created"]) for row in rows), max)
    steps = tuple(
        Step(time - float(rows[0]["created"]), text=_told(row, replaced_by), choice=_kind(row), recalled=was)
        for time, row, was in zip(times, rows, (_superseded(row, places) for row in rows), strict=True)
    )
    importance: list[float | None] = [float(row["importance"]) for row in rows]
    wordings: list[float | None] = [1.0 + len(row["sayings"]) for row in rows]
    if query is not None:
        steps += (_asked(bank, query, k, places, steps[-1].time),)
        importance, wordings = [*importance, None], [*wordings, None]
    shown = f"{count:,}" if count == len(rows) else f"the newest {len(rows):,} of {count:,}"
    return Trace(
        kind="agent",
        title=title,
        steps=steps,
        about={"records": shown, "written since": _day(rows[0]["created"])},
        unit="seconds",
        tracks={"importance": tuple(importance), "wordings": tuple(wordings)},
    )


def _asked(bank: MemoryBank, query: str, k: int, places: Mapping[str, int], time: float) -> Step:
    """Return the step that asks a query, and says why each record came."""
    hits = bank.search(query, k, explain=True)
    lines = [query, *(found_by(hit, places.get(hit.id)) for hit in hits)]
    shown = [(places[hit.id], max(hit.score, 0.0)) for hit in hits if hit.id in places]
    recalled = Recall.of("the question", *zip(*shown, strict=True)) if shown else None
    return Step(
        time,
        text="\n".join(lines if hits else [query, "nothing found"]),
        choice="asked",
        recalled=() if recalled is None else (recalled,),
    )


def found_by(hit: Hit, place: int | None) -> str:
    """Return a line that says where a record is, and how its score came about."""
    where = "an older record, not shown" if place is None else f"step {place}"
    why = "" if hit.explanation is None else f": {hit.explanation.told}"
    return f"{where}, found with a score of {hit.score:.3g}{why}"


def _superseded(row: Mapping[str, Any], places: Mapping[str, int]) -> tuple[Recall, ...]:
    place = places.get(row["supersedes"])
    return () if place is None else (Recall.of("the record that it supersedes", [place], [1.0]),)


def _told(row: Mapping[str, Any], replaced_by: Mapping[str, int]) -> str:
    """Return what a record says, in all its wordings, and how long it holds."""
    lines = [row["text"], *(f"also said: {saying['text']}" for saying in row["sayings"])]
    lines.append(f"observed {_day(row['observed'])}")
    if row["valid_from"] is not None:
        lines.append(f"holds from {_day(row['valid_from'])}")
    if row["valid_to"] is not None:
        after = replaced_by.get(row["id"])
        lines.append(f"held until {_day(row['valid_to'])}{'' if after is None else f': see step {after}'}")
    return "\n".join(lines)


def _kind(row: Mapping[str, Any]) -> str:
    whose = f" of {'/'.join(row['namespace'])}" if row["namespace"] else ""
    return f"remembered as {row['kind']}{whose}, worded by {row['trust']}; {row['id']}"


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"

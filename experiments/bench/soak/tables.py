"""Options of the soak, and the tables of its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scrubjay.experiments.bench.soak.bank import BankSoak
from scrubjay.experiments.bench.soak.runs import RunsSoak
from scrubjay.experiments.bench.soak.segments import TOO_LARGE, SegmentsSoak
from scrubjay.experiments.measurements import markdown

Part = Literal["runs", "bank", "segments"]


@dataclass(frozen=True)
class Soak:
    """Options of the soak."""

    parts: tuple[Part, ...] = ("runs", "bank", "segments")
    """Parts to run; the tables have the parts that ran so far."""
    runs: RunsSoak = field(default_factory=RunsSoak)
    """Two processes in one run directory."""
    bank: BankSoak = field(default_factory=BankSoak)
    """A bank whose writer is killed."""
    segments: SegmentsSoak = field(default_factory=SegmentsSoak)
    """Long segments of memories."""
    out: Path = Path("runs/soak")
    """Output directory of the tables and all files of the parts."""


def describe_runs(soak: Soak, rows: list[dict[str, Any]], growths: list[int]) -> str:
    """Return the table of the commands in one run directory."""
    counts = Counter((row["command"], row["outcome"]) for row in rows)
    outcomes = ("killed", "refused", "finished", "nothing yet")
    table = [
        [command, *(counts[command, outcome] for outcome in outcomes)]
        for command in sorted({row["command"] for row in rows})
    ]
    growth = (
        f" The undisturbed process grew by {_mib(growths[-1])} MiB in its last four fifths."
        if growths
        else ""
    )
    return (
        f"## Two processes in one run directory\n\nA run of {soak.runs.updates:,} updates. "
        f"Metrics, weights and scores equal those of an undisturbed run, bit for bit.{growth}\n\n"
        + markdown(["command", "killed", "refused", "finished", "no checkpoint yet"], table)
    )


def describe_bank(soak: Soak, rows: list[dict[str, Any]]) -> str:
    """Return the table of the kills of a bank's writer."""
    growing, full = rows[: soak.bank.kills], rows[soak.bank.kills :]
    step = max(1, soak.bank.kills // 5)
    groups = [growing[first : first + step] for first in range(0, len(growing), step)] + [full]
    table = [
        [
            len(group),
            f"{group[-1]['records']:,}",
            _range(group, "milliseconds"),
            _range(group, "opening", _kib),
            _range(group, "reading", _kib),
            _range(group, "words"),
            _range(group, "meaning"),
            _range(group, "vectors", _mib),
            _range(group, "writing", _mib),
            _range(group, "reader memory", _mib),
            _range(group, "log", _mib),
            _mib(group[-1]["file"]),
        ]
        for group in groups
        if group
    ]
    columns = [
        "kills", "records after them", "opening, ms", "KiB after opening", "KiB after 5 searches by words",
        "search by words, ms", "by meaning, ms", "MiB after searches by meaning", "MiB of the writer",
        "MiB of the reader", "MiB of the write-ahead log", "MiB of the file",
    ]  # fmt: skip
    last = rows[-1]
    return (
        f"## A bank under kills\n\n{len(rows)} kills of the writer, and as many openings. "
        f"All {last['batches'] * soak.bank.batch:,} records were there, except the {last['forgotten']} that "
        f"were forgotten. The reader made {_count_searches(rows):,} searches meanwhile. Cells have the "
        "least and the largest value. Memory is that added by a new process, without the pages of the file. "
        "Times are those of the clock.\n\n" + markdown(columns, table)
    )


def _count_searches(rows: list[dict[str, Any]]) -> int:
    """Return the searches of all readers; a new one starts to count when the soak is resumed."""
    counts = [row["reader searches"] for row in rows]
    return sum(now for now, after in zip(counts, [*counts[1:], 0], strict=True) if after < now)


def describe_segments(soak: Soak, rows: list[dict[str, Any]]) -> str:
    """Return the table of long segments."""
    table = []
    for name in dict.fromkeys(row["memory"] for row in rows):
        part = {row["part"]: row for row in rows if row["memory"] == name}
        has_whole = part["whole"]["error"] != TOO_LARGE
        table.append(
            [
                name,
                *(_kib(part[key]["bytes"]) for key in ("step", "cut")),
                *(_peak(soak, part[key]) for key in ("whole", "learn")),
                *(f"{part[key]['difference']:.0e}" if has_whole else "-" for key in ("step", "cut")),
                "; ".join(f"{key}: {row['error']}" for key, row in part.items() if is_fault(row)) or "-",
            ]
        )
    columns = [
        "memory", "step by step, KiB of growth", "in pieces, KiB of growth", "whole, MiB at the peak",
        "with gradients, MiB at the peak", "difference of steps", "difference of pieces", "errors",
    ]  # fmt: skip
    return (
        f"## Segments of {soak.segments.steps:,} steps\n\nTwo rows of width {soak.segments.dim} in "
        f"{soak.segments.dtype}. The limit of a part is {soak.segments.gib:g} GiB. Differences are from "
        "the whole segment, relative to the largest output.\n\n" + markdown(columns, table)
    )


def _peak(soak: Soak, row: dict[str, Any]) -> str:
    return f"over {1024 * soak.segments.gib:,.0f}" if row["error"] == TOO_LARGE else _mib(row["bytes"])


def is_fault(row: dict[str, Any]) -> bool:
    """Return True if a row of the segments has an error that is not the limit of memory."""
    return row["error"] not in ("", TOO_LARGE)


def _range(
    rows: Iterable[dict[str, Any]], name: str, convert: Callable[[float], str] = "{:.0f}".format
) -> str:
    values = sorted(row[name] for row in rows if name in row)
    return " to ".join(dict.fromkeys(map(convert, (values[0], values[-1])))) if values else "-"


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f}"


def _kib(count: float) -> str:
    return f"{count / 2**10:,.0f}"

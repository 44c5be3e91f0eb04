"""Results that survive being stopped: one JSON line each, in a directory that remembers what it measures."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.provenance import processor, version
from scrubjay.experiments.runs.reading import Fields, read_lines, read_object
from scrubjay.memory.serialization import decode

SETTINGS = "settings.json"


class Records:
    """The rows of a JSON-lines file, in memory and on disk; a last line cut off by a kill is dropped.

    Every row has the fields that `kinds` tells of, each of its kind; more may be there. Raises ValueError,
    naming the line, if another one is damaged.
    """

    def __init__(self, path: Path, kinds: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = [dict(_checked(row, kinds)) for row in read_lines(path)]
        if path.exists():
            self.keep(lambda row: True)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row, on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(dict(row))

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the rows that are not `wanted`."""
        self.rows = [row for row in self.rows if wanted(row)]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def find(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the rows that have these values, which may be lists in JSON, in these fields."""
        return [row for row in self.rows if all(row[name] == value for name, value in fields.items())]


def settle(out: Path, settings: Mapping[str, Any]) -> None:
    """Make a directory for results of these settings, or check that it is theirs.

    Raises ValueError if it holds results of other settings, naming those that differ. One in which nothing
    has come of its settings, as a mistyped word among them was found too late, takes others.
    """
    out.mkdir(parents=True, exist_ok=True)
    file, settings = out / SETTINGS, json.loads(json.dumps(settings, default=str))
    if file.exists() and any(path != file for path in out.iterdir()):
        before = read_object(file)
        different = [
            f"{name}={before.get(name)!r}, now {settings.get(name)!r}"
            for name in sorted({*before, *settings})
            if before.get(name) != settings.get(name)
        ]
        if different:
            raise ValueError(f"{out} holds results of {'; '.join(different)}: choose another --out")
    write_atomically(file, json.dumps(settings, indent=2) + "\n")


def _checked(row: Fields, kinds: Mapping[str, Any]) -> Fields:
    for name, kind in kinds.items():
        decode(kind, row[name], f"{row.source}, which is damaged: {name}")
    return row


def header(command: str) -> str:
    """Return what a reader of a table must know: the command, versions, the machine, the day."""
    return (
        f"`{command}`\n\n"
        f"{version()}, transformers {importlib.metadata.version('transformers')}, "
        f"torch {torch.__version__}, Python {sys.version.split()[0]}, {processor()}, "
        f"{_plural(torch.get_num_threads(), 'thread')}, {date.today()}."
    )


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown; the first column to the left, the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"

"""Measurements: rows of results that survive an interruption, their settings, and their provenance."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from scrubjay._version import __version__
from scrubjay.experiments.files import (
    LOCK,
    Fields,
    open_to_append,
    own_folder,
    read_lines,
    read_object,
    write_atomically,
)
from scrubjay.memory.serialization import decode

SETTINGS = "settings.json"


class Records:
    """Rows of a JSON-lines file, in memory and on disk; an incomplete last line is dropped.

    Every row has the fields of `field_types` with values of these types, and may have more fields. Raises
    ValueError, naming the line, if any other line is damaged.
    """

    def __init__(self, path: Path, field_types: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = [dict(check_row(row, field_types)) for row in read_lines(path)]
        if path.exists():
            self.keep(lambda row: True)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row and write it to disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open_to_append(self.path) as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(dict(row))

    def keep(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only the rows for which `condition` is true."""
        self.rows = [row for row in self.rows if condition(row)]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def find(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the rows whose fields equal these values. A value may be a JSON list."""
        return select(self.rows, **fields)


def select(rows: Iterable[Mapping[str, Any]], **fields: Any) -> list[Any]:
    """Return the rows whose fields equal these values."""
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]


def prepare_results_dir(out: Path, settings: Mapping[str, Any]) -> None:
    """Create a directory for results with these settings, or check that an existing one has these settings.

    This command then owns the directory, as with `own_folder`. Raises ValueError, naming the differences, if
    the directory holds results with other settings, and if another process owns it. A directory without
    results accepts new settings.
    """
    own_folder(out)
    file, settings = out / SETTINGS, json.loads(json.dumps(settings, default=str))
    if file.exists() and any(path.name not in (SETTINGS, LOCK) for path in out.iterdir()):
        before = read_object(file)
        different = [
            f"{name}={before.get(name)!r}, now {settings.get(name)!r}"
            for name in sorted({*before, *settings})
            if before.get(name) != settings.get(name)
        ]
        if different:
            raise ValueError(f"{out} holds other results ({'; '.join(different)}); choose another --out")
    write_atomically(file, json.dumps(settings, indent=2) + "\n")


def check_row(row: Fields, field_types: Mapping[str, Any]) -> Fields:
    """Return a row of a file. Raises ValueError, naming the line, if a field has another type."""
    for name, kind in field_types.items():
        decode(kind, row[name], f"{row.source}, which is damaged: {name}")
    return row


def header(command: str) -> str:
    """Return the context of a table: command, versions, machine and date."""
    threads = torch.get_num_threads()
    return (
        f"`{command}`\n\n"
        f"{version()}, transformers {importlib.metadata.version('transformers')}, "
        f"torch {torch.__version__}, Python {sys.version.split()[0]}, {processor()}, "
        f"{threads} thread{'s' * (threads != 1)}, {date.today()}."
    )


def write_table(out: Path, command: str, *sections: str) -> Path:
    """Write table.md in a folder, with the context of the table and these sections, and return its path."""
    path = out / "table.md"
    write_atomically(path, "\n\n".join([header(command), *sections]) + "\n")
    return path


def markdown(columns: Sequence[str], rows: Iterable[Iterable[Any]], alignment: str = "---:") -> str:
    """Return a Markdown table. The first column is left-aligned; `alignment` is that of the others."""
    lines = [columns, ["---", *[alignment] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def version() -> str:
    """Return the version of Scrubjay, with its commit if run from a git clone."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    ).stdout.strip()
    return f"scrubjay {__version__}{f' at {commit}' if commit else ''}"


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )

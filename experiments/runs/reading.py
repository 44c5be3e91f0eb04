"""JSON of a run or a measurement, read from files that a disk, a kill or another program may have damaged."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 2**26
"""Of a file with one object; the largest tells the bounds of every number of an observation."""
MOST_BYTES_OF_LINES = 2**28
"""Of a file of lines: of half a million updates, or so."""

_AT_ONCE = getattr(os, "O_NONBLOCK", 0)


class Fields(dict[str, Any]):
    """An object of JSON; of a field that it lacks it says where, and what to do if that is known."""

    def __init__(self, values: dict[str, Any], source: object, remedy: str = "") -> None:
        super().__init__(values)
        self.source, self.remedy = source, remedy

    def __missing__(self, name: str) -> Any:
        if self.remedy:
            raise ValueError(f"{self.source} lacks {name}: {self.remedy}")
        raise ValueError(f"{self.source} is damaged: it lacks {name}")


def parse(text: str, source: object) -> Any:
    """Return the value that a text of JSON is. Raises ValueError, naming `source`, if it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{source} is not JSON that ends: its lists are too deep in each other") from None
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}") from None


def parse_object(text: str, source: object) -> Fields:
    """Return the object that a text of JSON is. Raises ValueError, naming `source`, if it is none."""
    value = parse(text, source)
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004  (of what a file holds)
            f"{source} is damaged: it holds {value!r:.40} in place of an object of JSON"
        )
    return Fields(value, source)


def read_object(path: Path) -> Fields:
    """Return the object of JSON in a file. Raises ValueError if it holds none; OSError."""
    return parse_object(read_kept(path), path)


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ValueError, naming it, if it is not UTF-8; OSError."""
    return _decoded(path.read_bytes(), path)


def read_kept(path: Path, most: int = MOST_BYTES) -> str:
    """Return the text of a file that a run or a measurement keeps, which a stranger may have written.

    Raises ValueError, naming it, if it is not UTF-8, no plain file, or larger than `most` bytes; OSError.
    """
    # A pipe that nobody writes to is opened without waiting, and then refused.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _AT_ONCE)) as file:
        told = os.fstat(file.fileno())
        if not stat.S_ISREG(told.st_mode):
            raise ValueError(f"{path} is no plain file")
        if told.st_size > most:
            raise ValueError(f"{path} has {told.st_size:,} bytes: more than {most:,} are no such file")
        return _decoded(file.read(most + 1), path)


def read_lines(path: Path) -> list[Fields]:
    """Return the objects in a file of JSON lines; none if there is no file.

    A last line cut off by a kill is left out. Raises ValueError, naming the line, on another without object.
    """
    try:
        text = read_kept(path, MOST_BYTES_OF_LINES)
    except FileNotFoundError:
        return []
    return [
        parse_object(line, f"line {number} of {path}")
        for number, line in enumerate(text.split("\n")[:-1], 1)
        if line.strip()
    ]


def read_numbers(path: Path) -> Fields:
    """Return numbers by name from a file. Raises ValueError if it holds anything else."""
    return with_numbers(read_object(path))


def with_numbers(fields: Fields) -> Fields:
    """Return the same. Raises ValueError unless all values are numbers that a float can hold."""
    for name, value in fields.items():
        if not is_number(value):
            raise ValueError(f"{fields.source} is damaged: {name}={value!r:.40} is no number")
    return fields


def _decoded(data: bytes, path: Path) -> str:
    try:
        # As files of text are read: of any system's ends of lines.
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: byte {error.start} is none of it") from None


def is_number(value: Any) -> bool:
    """Return whether a value is a number of JSON, NaN among them, that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        math.isnan(value)
    except OverflowError:
        return False
    return True

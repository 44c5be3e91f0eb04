"""Reader of JSON files of runs and measurements, which may be damaged or untrusted."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 2**26
"""Maximum size of a file with one object; the largest stores the bounds of all observation elements."""
MAX_LINES_BYTES = 2**28
"""Maximum size of a JSON-lines file, about half a million updates."""

_AT_ONCE = getattr(os, "O_NONBLOCK", 0)


class Fields(dict[str, Any]):
    """JSON object. A missing field raises ValueError, which names the source and, if known, a remedy."""

    def __init__(self, values: dict[str, Any], source: object, remedy: str = "") -> None:
        super().__init__(values)
        self.source, self.remedy = source, remedy

    def __missing__(self, name: str) -> Any:
        if self.remedy:
            raise ValueError(f"{self.source} lacks {name}: {self.remedy}")
        raise ValueError(f"{self.source} is damaged: it lacks {name}")


def parse(text: str, source: object) -> Any:
    """Parse JSON text. Raises ValueError, naming `source`, if it is not valid JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{source} is not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}") from None


def parse_object(text: str, source: object) -> Fields:
    """Parse a JSON object. Raises ValueError, naming `source`, if the text is not a JSON object."""
    value = parse(text, source)
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004  (the error is about the content of a file)
            f"{source} is damaged: it holds {value!r:.40} instead of a JSON object"
        )
    return Fields(value, source)


def read_object(path: Path) -> Fields:
    """Read a JSON object from a file. Raises ValueError on other content, and OSError if reading fails."""
    return parse_object(read_untrusted(path), path)


def read_text(path: Path) -> str:
    """Read a text file. Raises ValueError, naming the file, if it is not UTF-8; OSError if reading fails."""
    return _decode(path.read_bytes(), path)


def read_untrusted(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Read a text file of a run or a measurement, which may be untrusted.

    Raises ValueError, naming the file, if it is not UTF-8, not a regular file, or larger than `max_bytes`.
    Raises OSError if reading fails.
    """
    # Open a pipe without blocking, and then reject it.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _AT_ONCE)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if status.st_size > max_bytes:
            raise ValueError(f"{path} has {status.st_size:,} bytes: the limit is {max_bytes:,}")
        return _decode(file.read(max_bytes + 1), path)


def read_lines(path: Path) -> list[Fields]:
    """Return the objects in a JSON-lines file; return an empty list if the file does not exist.

    An incomplete last line is skipped. Raises ValueError, naming the line, if any other line holds no object.
    """
    try:
        text = read_untrusted(path, MAX_LINES_BYTES)
    except FileNotFoundError:
        return []
    return [
        parse_object(line, f"line {number} of {path}")
        for number, line in enumerate(text.split("\n")[:-1], 1)
        if line.strip()
    ]


def read_numbers(path: Path) -> Fields:
    """Read an object of numbers from a JSON file. Raises ValueError on other content."""
    return check_numbers(read_object(path))


def check_numbers(fields: Fields) -> Fields:
    """Return `fields`. Raises ValueError unless all values are numbers that a float can represent."""
    for name, value in fields.items():
        if not is_number(value):
            raise ValueError(f"{fields.source} is damaged: {name}={value!r:.40} is not a number")
    return fields


def _decode(data: bytes, path: Path) -> str:
    try:
        # Universal newlines, as in text mode.
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid UTF-8: byte {error.start} is invalid") from None


def is_number(value: Any) -> bool:
    """Return True if a value is a JSON number, including NaN, that a float can represent."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        math.isnan(value)
    except OverflowError:
        return False
    return True

"""JSON of a run or a measurement, read from files that a disk, a kill or another program may have damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


class Fields(dict[str, Any]):
    """An object of JSON; of a field that it lacks it says where."""

    def __init__(self, values: dict[str, Any], source: object) -> None:
        super().__init__(values)
        self.source = source

    def __missing__(self, name: str) -> Any:
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
    return parse_object(read_text(path), path)


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ValueError, naming it, if it is not UTF-8; OSError."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: byte {error.start} is none of it") from None


def read_lines(path: Path) -> list[Fields]:
    """Return the objects in a file of JSON lines; none if there is no file.

    A last line cut off by a kill is left out. Raises ValueError, naming the line, on another without object.
    """
    try:
        text = read_text(path)
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


def is_number(value: Any) -> bool:
    """Return whether a value is a number of JSON, NaN among them, that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        math.isnan(value)
    except OverflowError:
        return False
    return True

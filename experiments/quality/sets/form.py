"""Files of sets that others published, read as what strangers wrote: what is no such file is one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scrubjay.experiments.runs.reading import MOST_BYTES_OF_LINES, parse, read_kept
from scrubjay.experiments.words.failures import UsageError
from scrubjay.memory.bank.file.record import LONGEST_TEXT

_MOST_BYTES = 2**32
"""Of a file of a set: LongMemEval's longest have 2.7 GB."""


@contextlib.contextmanager
def form_of(name: str, path: Path) -> Iterator[None]:
    """Raise UsageError, naming the file, on what is not in the form of the set `name`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; name where {name} lies") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"{path} is not in the form of {name}: {reason}") from None


def read_json(path: Path) -> Any:
    """Return the value that a file of JSON holds. Raises ValueError if it holds none; OSError."""
    return parse(read_kept(path, _MOST_BYTES), path)


def read_json_lines(path: Path) -> list[Any]:
    """Return the values in a file of JSON lines. Raises ValueError, naming the line; OSError."""
    lines = read_kept(path, MOST_BYTES_OF_LINES).split("\n")
    return [parse(line, f"line {n} of {path}") for n, line in enumerate(lines, 1) if line.strip()]


def json_files(folder: Path) -> list[Path]:
    """Return the files of JSON in a folder, by name. Raises ValueError if there are none; OSError."""
    found = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    if not found:
        raise ValueError("there is no .json in it")
    return found


def text(value: Any) -> str:
    """Return a text; halves of characters, which JSON can hold, as question marks. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} stands where a text is wanted")
    return value.encode("utf-8", "replace").decode()


def references(value: Any) -> tuple[str, ...]:
    """Return texts that are right answers: of a list each, of a number its digits, of None none."""
    if value is None:
        return ()
    told = value if isinstance(value, list) else [value]
    texts = (str(one) if isinstance(one, int | float) else text(one).strip() for one in told)
    return tuple(one for one in texts if one)


def said(value: Any) -> str:
    """Return a text as a bank can remember it: not blank, and not endless. Raises TypeError as `text`."""
    return text(value).strip()[:LONGEST_TEXT] or "-"


def whole(value: Any) -> int:
    """Return a whole number. Raises TypeError on anything else."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} stands where a whole number is wanted")
    return value


def items(value: Any) -> list[Any]:
    """Return a list. Raises TypeError on anything else."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} stands where a list is wanted")
    return value


def fields(value: Any) -> dict[str, Any]:
    """Return an object of JSON. Raises TypeError on anything else."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.40} stands where an object is wanted")
    return value

"""What verbs of the command share: errors of one line, numbers, tables."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import gymnasium

from scrubjay.experiments.words.arguments import UsageError

# Control characters but tab and line feed, and those that turn the direction of writing or show nothing at
# all.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Turn errors of checks on what the user gave into one line; elsewhere they keep their traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, gymnasium.error.Error) as error:
        raise UsageError(" ".join(str(error).split())) from error


def whole_number(name: str, value: str) -> int:
    """Return `value` as a number; raises ValueError naming it."""
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name}={value!r}: expected a whole number") from None


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of words as indented columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def printable(text: str) -> str:
    """Return `text` without what would steer the terminal.

    A page that an agent read must not write over its screen.
    """
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)

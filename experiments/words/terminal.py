"""What verbs of the command share: errors of one line, numbers, tables."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

from scrubjay.experiments.words.failures import UsageError, describe, lacks_memory
from scrubjay.experiments.words.foreign import one_line


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Turn errors of checks on what the user gave into one line; elsewhere they keep their traceback."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BrokenPipeError) or not (_is_told(error) or lacks_memory(error)):
            raise
        raise UsageError(describe(error)) from error


def _is_told(error: Exception) -> bool:
    """Return whether an error is of the kinds that checks raise."""
    if isinstance(error, ValueError | TypeError | OSError | ImportError):
        return True
    if "gymnasium" not in sys.modules:  # who did not need it does not wait for it
        return False
    from gymnasium.error import Error

    return isinstance(error, Error)


def whole_number(name: str, value: str) -> int:
    """Return `value` as a number; raises ValueError naming it."""
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name}={value!r}: expected a whole number") from None


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of words as indented columns; what a word holds that is no letter of a line is replaced."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )

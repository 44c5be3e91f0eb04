"""Helpers shared by all commands: one-line errors, number parsing, tables."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

from scrubjay.experiments.cli.failures import UsageError, describe, is_out_of_memory
from scrubjay.experiments.cli.untrusted_text import one_line


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Convert errors caused by invalid input to UsageError; other errors keep their traceback."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BrokenPipeError) or not (_is_input_error(error) or is_out_of_memory(error)):
            raise
        raise UsageError(describe(error)) from error


def _is_input_error(error: Exception) -> bool:
    """Return True for the error types that input validation raises."""
    if isinstance(error, ValueError | TypeError | OSError | ImportError):
        return True
    if "gymnasium" not in sys.modules:  # do not import it only for this check
        return False
    from gymnasium.error import Error

    return isinstance(error, Error)


def parse_integer(name: str, value: str) -> int:
    """Return `value` as an int. Raises ValueError, naming the option `name`, if it is not a whole number."""
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name}={value!r}: expected a whole number") from None


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as indented columns; control characters are replaced."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )

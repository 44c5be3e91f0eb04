"""Readers for untrusted files of published data sets, with one-line errors on malformed files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.files import MAX_LINES_BYTES, parse, read_untrusted
from scrubjay.experiments.lm.conversations import Conversation, Question, Turn
from scrubjay.memory.bank.record import MAX_TEXT_LENGTH

_MAX_BYTES = 2**32
"""Maximum file size; the longest files of LongMemEval have 2.7 GB."""


@contextlib.contextmanager
def expect_format(name: str, path: Path) -> Iterator[None]:
    """Convert errors of a reader to a UsageError that names the file and the data set `name`."""
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; give the path of {name}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        reason = (
            f"missing key {error}" if isinstance(error, KeyError)
            else f"it is not UTF-8: {error.reason}" if isinstance(error, UnicodeDecodeError)
            else error
        )  # fmt: skip
        raise UsageError(f"{path} is not in the format of {name}: {reason}") from None


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises ValueError on malformed JSON, and OSError if the file is unreadable."""
    return parse(read_untrusted(path, _MAX_BYTES, zeros=False), path)


def read_json_lines(path: Path) -> list[Any]:
    """Parse a JSON Lines file.

    Raises ValueError, which names the malformed line, and OSError if the file is unreadable.
    """
    lines = read_untrusted(path, MAX_LINES_BYTES).split("\n")
    return [parse(line, f"line {n} of {path}") for n, line in enumerate(lines, 1) if line.strip()]


def json_files(folder: Path) -> list[Path]:
    """Return the sorted .json files of a folder.

    Raises ValueError if the folder has no .json file, and OSError if the folder is unreadable.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    if not paths:
        raise ValueError("the folder contains no .json file")
    return paths


def make_conversation(turns: Iterable[Turn], questions: Iterable[Question], name: str) -> Conversation:
    """Build a conversation with the questions that can be scored, by needed turns or by a correct answer."""
    return Conversation(tuple(turns), tuple(one for one in questions if one.answers or one.references), name)


def text(value: Any) -> str:
    """Check that a value is a string; return it with lone surrogates replaced by question marks.

    Raises TypeError on another type.
    """
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r:.40}")
    return value.encode("utf-8", "replace").decode()


def references(value: Any) -> tuple[str, ...]:
    """Return the correct answers as strings, from a list, a string, a number or None."""
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    texts = (str(one) if isinstance(one, int | float) else text(one).strip() for one in values)
    return tuple(one for one in texts if one)


def to_record_text(value: Any) -> str:
    """Return a string as text of a record: truncated to the maximum length, and "-" if it is blank.

    Raises TypeError on another type.
    """
    return text(value).strip()[:MAX_TEXT_LENGTH] or "-"


def check_integer(value: Any) -> int:
    """Check that a value is an integer and return it. Raises TypeError on another type."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected an integer, got {value!r:.40}")
    return value


def items(value: Any) -> list[Any]:
    """Check that a value is a list and return it. Raises TypeError on another type."""
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {value!r:.40}")
    return value


def fields(value: Any) -> dict[str, Any]:
    """Check that a value is a JSON object and return it. Raises TypeError on another type."""
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r:.40}")
    return value

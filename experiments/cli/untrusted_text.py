"""Sanitizing of untrusted text for printing: terminal escapes and bidirectional overrides have no effect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

_MAX_LINE = 1000
# Control characters except tab and line feed, bidirectional controls, invisible line separators, and tag
# characters, which are invisible.
_CONTROL_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def printable(text: object) -> str:
    """Replace control characters in a text; line breaks stay.

    A web page that an agent read, or an untrusted run, must not send escape sequences to the terminal.
    """
    return _escape_surrogates(_CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", str(text)))


def one_line(text: object) -> str:
    """Return a text as one line without control characters, shortened to 1000 characters."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]} …"


def as_json(value: Any) -> str:
    """Return a value as one line of JSON. Control characters are escaped; other characters are unchanged."""
    return _escape_surrogates(
        _CONTROL_CHARACTERS.sub(_escape_control, json.dumps(value, ensure_ascii=False, default=str))
    )


def _escape_surrogates(text: str) -> str:
    """Escape lone surrogates, which JSON and file names may contain but UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _escape_control(letter: re.Match[str]) -> str:
    code = ord(letter.group())
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD7C0 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


class HelpShown(SystemExit):
    """End of a command that has printed its help, with exit code 0.

    Any other SystemExit comes from code of the user, and is a failure.
    """

    def __init__(self) -> None:
        super().__init__(0)


def show_help(text: str) -> NoReturn:
    """Print a help text and end the command with exit code 0."""
    print(text)
    raise HelpShown


def format_entries(entries: Mapping[str, str]) -> str:
    """Return one indented line for each name with its description."""
    width = max(map(len, entries))
    return "\n".join(f"  {name:<{width}}  {about}" for name, about in entries.items())


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as indented columns; control characters are replaced."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )

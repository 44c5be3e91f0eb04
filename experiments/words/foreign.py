"""Text that others wrote, made fit to be shown: it neither steers the terminal nor turns what is read."""

from __future__ import annotations

import json
import re
from typing import Any

_LONGEST = 1000
# Controls but tab and line feed; what turns the direction of writing; what parts lines unseen; tags, which
# show nothing at all.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def printable(text: object) -> str:
    """Return a text without what would steer the terminal, in the lines that it has.

    A page that an agent read, or a run that a stranger sent, must not write over the screen.
    """
    return _whole(_STEERING.sub("\N{REPLACEMENT CHARACTER}", str(text)))


def one_line(text: object) -> str:
    """Return a text without its line breaks and what would steer the terminal, and not endless."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def as_json(value: Any) -> str:
    """Return a value as JSON in one line, letters as they are but for those that steer: these as escapes."""
    return _whole(_STEERING.sub(_escaped, json.dumps(value, ensure_ascii=False, default=str)))


def _whole(text: str) -> str:
    """Return a text with halves of letters as escapes: JSON and names of files hold them, none can write."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _escaped(letter: re.Match[str]) -> str:
    code = ord(letter.group())
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD7C0 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"

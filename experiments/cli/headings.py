"""Headings of the groups of options in a help text: nouns, where tyro prints the prefix of the flags."""

from __future__ import annotations

import re
from typing import Any, TextIO

_HEADINGS = {"": "options", "env": "environment", "env.kwargs": "settings of the environment"}
"""Headings of groups by the prefix of their flags. Any other heading is the last part of the prefix."""
_COLOR = r"(?:\x1b\[[\d;]*m)*"
_LABEL = re.compile(
    rf"^(?P<start>{_COLOR}(?:╭{_COLOR}─)?{_COLOR} {_COLOR})"
    rf"(?P<old>(?P<prefix>[a-z][\w.-]*){_COLOR} options|positional{_COLOR} arguments)"
    rf"(?P<end>{_COLOR} {_COLOR})(?P<line>[─ ]*)(?=╮|$|\x1b)",
    re.MULTILINE,
)
"""Line with the label of a group, in a box or above a ruler, with or without colors."""


def heading(prefix: str) -> str:
    """Return the heading of the options whose flags begin with this prefix."""
    return _HEADINGS.get(prefix, re.sub(r"[_-]", " ", prefix.rpartition(".")[2]))


class Headings:
    """Text stream that renames the groups in a help text and passes it on to another stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text with the headings of groups as nouns."""
        return self._stream.write(rename_groups(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def rename_groups(text: str) -> str:
    """Return a help text with the headings of groups as nouns. The width of its lines stays the same."""
    return _LABEL.sub(_rename, text)


def _rename(label: re.Match[str]) -> str:
    new = "arguments" if label["prefix"] is None else heading(label["prefix"])
    width = len(label["line"]) + len(re.sub(_COLOR, "", label["old"])) - len(new)
    return f"{label['start']}{new}{label['end']}{(label['line'][:1] or ' ') * width}"

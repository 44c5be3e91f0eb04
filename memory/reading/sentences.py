"""Split texts into sentences, English and Chinese, as they stream in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LONGEST = 1000
"""Maximum number of characters of a sentence. A longer sentence is split at a line end if there is one,
otherwise between words, otherwise anywhere."""

_PIECE = 1 << 16
_CLOSERS = "\"'”’»)\\]」』）》"
_END = re.compile(
    rf"[.!?…]+[{_CLOSERS}]*(?=\s+[^\sa-z])"  # a sentence continues before a lower-case letter
    rf"|[。！？]+[{_CLOSERS}]*(?=[^。！？{_CLOSERS}])"
    r"|\S(?=[^\S\n]*\n[^\S\n]*\n)"  # a blank line ends a heading
)
_ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|Rev|Hon|Capt|Col|Gen|Lt|Sgt|No|Vol|Fig|vs|cf|e\.g|i\.e|[A-Z])\.$"
)


def split_sentences(text: str | Iterable[str]) -> Iterator[str]:
    """Yield the sentences of a text. The text may consist of pieces that are split anywhere.

    Joined together, the sentences are the text: white space belongs to the following sentence. At most one
    piece and one sentence are in memory.
    """
    pieces = _pieces(text) if isinstance(text, str) else text
    buffer, start = "", 0
    for piece in pieces:
        buffer, start = buffer[start:] + piece, 0
        while (end := _end(buffer, start)) is not None:
            yield buffer[start:end]
            start = end
    if buffer[start:]:
        yield buffer[start:]


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def _end(text: str, start: int) -> int | None:
    """Return the end of the sentence that begins at `start`, None if more text is needed to find the end."""
    limit = start + LONGEST
    at = start
    while (match := _END.search(text, at, limit)) is not None:
        if _ABBREVIATION.search(text, start, match.end()) is None:
            return match.end()
        at = match.end()
    if len(text) < limit:
        return None
    for mark in ("\n", " "):
        cut = text.rfind(mark, start + 1, limit)
        if cut > 0:
            return cut
    return limit

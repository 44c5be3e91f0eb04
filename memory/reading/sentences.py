"""Split texts into sentences, English and Chinese, as they stream in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LONGEST = 1000
"""Characters after which a sentence is cut at a line's end, else between words, else anywhere."""

_PIECE = 1 << 16
_CLOSERS = "\"'”’»)\\]」』）》"
_END = re.compile(
    rf"[.!?…]+[{_CLOSERS}]*(?=\s+[^\sa-z])"  # before a small letter a sentence goes on
    rf"|[。！？]+[{_CLOSERS}]*(?=[^。！？{_CLOSERS}])"
    r"|\S(?=[^\S\n]*\n[^\S\n]*\n)"  # a blank line ends a heading
)
_ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|Rev|Hon|Capt|Col|Gen|Lt|Sgt|No|Vol|Fig|vs|cf|e\.g|i\.e|[A-Z])\.$"
)


def split_sentences(text: str | Iterable[str]) -> Iterator[str]:
    """Give the sentences of a text, or of pieces of one that may be cut anywhere; joined they are the text.

    White space belongs to the sentence after it. Of the text no more is held than a piece and a sentence.
    """
    pieces = _pieces(text) if isinstance(text, str) else text
    held, start = "", 0
    for piece in pieces:
        held, start = held[start:] + piece, 0
        while (end := _end(held, start)) is not None:
            yield held[start:end]
            start = end
    if held[start:]:
        yield held[start:]


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def _end(text: str, start: int) -> int | None:
    """Return where the sentence from `start` ends, None if that is not to be seen yet."""
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

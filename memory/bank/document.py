"""Splitting of a document into sections, which become chunks, and of sections into passages (records)."""

from __future__ import annotations

import re

_HEADING = re.compile(
    r"^(?:#{1,6}\s+(?P<marked>\S.*)|(?P<underlined>\S.*)\n(?:={3,}|-{3,}))\s*$", re.MULTILINE
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_BLANK_LINE = re.compile(r"\n\s*\n")
# Separator and joint of paragraphs, sentences and words.
_LEVELS = ((re.compile("\n\n"), "\n\n"), (_SENTENCE_END, " "), (re.compile(" "), " "))


def split_document(text: str, passage_length: int = 600) -> list[tuple[str, list[str]]]:
    """Return a pair for each section of a document: its heading and its passages.

    Headings are Markdown headings. The text before the first heading has the heading "". A passage has at
    most `passage_length` characters. It consists of whole paragraphs if they fit, otherwise of whole
    sentences, otherwise of words.
    """
    if passage_length < 1:
        raise ValueError(f"passage_length={passage_length}: must be at least 1")
    sections, heading, position = [], "", 0
    for match in _HEADING.finditer(text):
        sections.append((heading, text[position : match.start()]))
        heading, position = (match["marked"] or match["underlined"]).strip(), match.end()
    sections.append((heading, text[position:]))
    split = ((heading, _split_text(_unwrap(body), passage_length)) for heading, body in sections)
    return [(heading, passages) for heading, passages in split if passages]


def _unwrap(body: str) -> str:
    """Return the text with one line per paragraph, and without runs of spaces."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in _BLANK_LINE.split(body))


def _split_text(text: str, length: int, level: int = 0) -> list[str]:
    """Split a text into strings of at most `length` characters.

    A string consists of neighbouring parts of the text: paragraphs (level 0), sentences (1) or words (2). A
    part that is longer than `length` is split at the next level, and a word anywhere.
    """
    if level == len(_LEVELS):
        return [text[i : i + length] for i in range(0, len(text), length)]
    separator, joint = _LEVELS[level]
    groups: list[list[str]] = []
    remaining = -1  # characters left in the last passage, joint included
    for part in filter(None, separator.split(text)):
        if len(part) > length:
            groups += [[piece] for piece in _split_text(part, length, level + 1)]
            remaining = -1
        elif len(joint) + len(part) <= remaining:
            groups[-1].append(part)
            remaining -= len(joint) + len(part)
        else:
            groups.append([part])
            remaining = length - len(part)
    return [joint.join(pieces) for pieces in groups]

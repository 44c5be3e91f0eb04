"""Splitting of a document into sections, which become chunks, and of sections into passages (records)."""

from __future__ import annotations

import re

_HEADING = re.compile(
    r"^(?:#{1,6}\s+(?P<marked>\S.*)|(?P<underlined>\S.*)\n(?:={3,}|-{3,}))\s*$", re.MULTILINE
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


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
    split = ((heading, _passages(body, passage_length)) for heading, body in sections)
    return [(heading, passages) for heading, passages in split if passages]


def _passages(body: str, length: int) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", body)]
    return _join_parts([part for part in paragraphs if part], length, "\n\n", _sentences)


def _sentences(paragraph: str, length: int) -> list[str]:
    return _join_parts([s for s in _SENTENCE_END.split(paragraph) if s], length, " ", _words)


def _words(sentence: str, length: int) -> list[str]:
    return _join_parts(sentence.split(), length, " ", _letters)


def _letters(word: str, length: int) -> list[str]:
    return [word[i : i + length] for i in range(0, len(word), length)]


def _join_parts(parts, length, joint, split_further) -> list[str]:
    """Join neighbouring parts of a text into strings of at most `length` characters.

    `split_further` splits a part that is longer than `length`.
    """
    groups: list[list[str]] = []
    remaining = -1  # characters left in the last passage, joint included
    for part in parts:
        if len(part) > length:
            groups += [[piece] for piece in split_further(part, length)]
            remaining = -1
        elif len(joint) + len(part) <= remaining:
            groups[-1].append(part)
            remaining -= len(joint) + len(part)
        else:
            groups.append([part])
            remaining = length - len(part)
    return [joint.join(pieces) for pieces in groups]

"""A document as sections of passages: what is remembered of it, and what its chunks are."""

from __future__ import annotations

import re

_HEADING = re.compile(
    r"^(?:#{1,6}\s+(?P<marked>\S.*)|(?P<underlined>\S.*)\n(?:={3,}|-{3,}))\s*$", re.MULTILINE
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


def split_document(text: str, passage_length: int = 600) -> list[tuple[str, list[str]]]:
    """Return each section's heading ("" before the first) and its passages of at most so many characters.

    Headings are Markdown's. A passage is whole paragraphs where they fit, else whole sentences, else words.
    """
    if passage_length < 1:
        raise ValueError(f"passage_length={passage_length}: must be at least 1")
    sections, heading, position = [], "", 0
    for found in _HEADING.finditer(text):
        sections.append((heading, text[position : found.start()]))
        heading, position = (found["marked"] or found["underlined"]).strip(), found.end()
    sections.append((heading, text[position:]))
    split = ((heading, _passages(body, passage_length)) for heading, body in sections)
    return [(heading, passages) for heading, passages in split if passages]


def _passages(body: str, length: int) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", body)]
    return _packed([part for part in paragraphs if part], length, "\n\n", _sentences)


def _sentences(paragraph: str, length: int) -> list[str]:
    return _packed([s for s in _SENTENCE_END.split(paragraph) if s], length, " ", _words)


def _words(sentence: str, length: int) -> list[str]:
    return _packed(sentence.split(), length, " ", _letters)


def _letters(word: str, length: int) -> list[str]:
    return [word[i : i + length] for i in range(0, len(word), length)]


def _packed(parts, length, joint, split_further) -> list[str]:
    """Return neighbouring parts joined while they fit; one that does not fit alone is split further."""
    packed: list[list[str]] = []
    room = -1  # of the last one, for a joint and more
    for part in parts:
        if len(part) > length:
            packed += [[piece] for piece in split_further(part, length)]
            room = -1
        elif len(joint) + len(part) <= room:
            packed[-1].append(part)
            room -= len(joint) + len(part)
        else:
            packed.append([part])
            room = length - len(part)
    return [joint.join(pieces) for pieces in packed]

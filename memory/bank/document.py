"""Splitting of a document into sections, which become chunks, and of sections into passages (records)."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

# A line that opens or closes a code block, a Markdown heading, or an underlined heading.
_MARK = re.compile(
    r"^(?: {0,3}(?P<fence>`{3,}|~{3,})(?P<info>.*)|#{1,6}[^\S\n]+(?P<marked>\S.*)"
    r"|(?P<underlined>\S.*)\n(?:={3,}|-{3,})[^\S\n]*)$",
    re.MULTILINE,
)
# A line end or the end of a sentence, with the white space after it; a Chinese sentence needs none. The
# pattern starts with a set of characters, since `re` then skips all other characters fast.
_GAP = re.compile(r"[\n.!?。！？](?:(?<=[.!?])\s+|(?<=[\n。！？])\s*)")
_SENTENCE_ENDS = (*".!?", *"。！？")
_PARAGRAPH, _SENTENCE, _LINE, _WORD = range(4)


class _Section(NamedTuple):
    """Part of a document that starts at a heading."""

    heading: str
    """Heading without its marks; empty before the first heading."""
    text: str
    """Text with the heading."""
    heading_end: int
    """Length of the heading in `text`."""


class _Gap(NamedTuple):
    """Place at which a text can be cut: a run of white space, or the end of a sentence without spaces."""

    level: int
    """Level of the parts that the gap separates: paragraphs, sentences, lines or words."""
    end: int
    """End of the part before the gap."""
    start: int
    """Start of the part after the gap, which includes the indentation of its line."""


def split_document(text: str, passage_length: int = 600) -> list[tuple[str, list[str]]]:
    r"""Return a pair for each section of a document: its heading and its passages.

    Every passage is an exact excerpt with at most `passage_length` characters, with its lines and their
    indentation. The passages follow each other in the order of the text. Only white space is left out between
    them: blank lines, line ends, and spaces between words. Line ends are `\n`, also where the document has
    `\r\n` or `\r`.

    A section starts at a Markdown heading and includes the heading. A `#` inside a code block is no heading.
    A heading without text of its own belongs to the next section. A document that has only headings has no
    passages.

    A passage consists of whole paragraphs if they fit, otherwise of whole sentences, otherwise of lines,
    otherwise of words. Lines that are indented or start with `|`, such as lines of code and tables, are cut
    only between lines if they fit.
    """
    if passage_length < 1:
        raise ValueError(f"passage_length={passage_length}: must be at least 1")
    sections = _split_sections(text.replace("\r\n", "\n").replace("\r", "\n"))
    return [(section.heading, list(_split_section(section, passage_length))) for section in sections]


def _split_sections(text: str) -> list[_Section]:
    """Return the sections of a text, which add up to it; none if the text has only headings."""
    starts, fence = [(0, 0, "")], ""
    for mark in _MARK.finditer(text):
        if mark["fence"] is not None:
            if not fence:
                is_inline_code = mark["fence"][0] == "`" and "`" in mark["info"]
                fence = "" if is_inline_code else mark["fence"]
            elif mark["fence"].startswith(fence) and not mark["info"].strip():
                fence = ""
        elif not fence:
            heading = (mark["marked"] or mark["underlined"]).strip()
            starts.append((mark.start(), mark.end(), heading))
    sections, first = [], 0
    for (_, heading_end, heading), (end, *_) in itertools.pairwise([*starts, (len(text), 0, "")]):
        if text[heading_end:end].strip():
            sections.append(_Section(heading, text[first:end], heading_end - first))
            first = end
    if sections and text[first:].strip():  # headings at the end of the document
        sections.append(_Section(starts[-1][2], text[first:], starts[-1][1] - first))
    return sections


def _split_section(section: _Section, length: int) -> Iterator[str]:
    """Yield the passages of a section."""
    text, gaps = section.text, list(_find_gaps(section.text))
    gaps_by_level = [[gap for gap in gaps if gap.level == level] for level in range(4)]
    ends_by_level = [[gap.end for gap in level] for level in gaps_by_level]
    start, last = gaps[0].start if gaps and gaps[0].end == 0 else 0, len(text.rstrip())
    while start < last:
        end = following = min(start + length, last)
        if end < last:
            # Prefer a gap after the heading, so that a heading is in one passage with the text below it.
            for earliest in (max(start, section.heading_end), start):
                gap = _find_last_gap(gaps_by_level, ends_by_level, earliest, end)
                if gap is None:
                    gap = _find_space(text, earliest, end)
                if gap is not None:
                    _, end, following = gap
                    break
        if not text[start:end].isspace():
            yield text[start:end]
        start = following


def _find_last_gap(
    gaps_by_level: list[list[_Gap]], ends_by_level: list[list[int]], earliest: int, limit: int
) -> _Gap | None:
    """Return the last gap of the highest level that ends after `earliest` and not after `limit`."""
    for gaps, ends in zip(gaps_by_level, ends_by_level, strict=True):
        index = bisect_right(ends, limit) - 1
        if index >= 0 and ends[index] > earliest:
            return gaps[index]
    return None


def _find_space(text: str, earliest: int, limit: int) -> _Gap | None:
    """Return the last run of spaces that starts after `earliest` and not after `limit`."""
    for end in range(limit, earliest, -1):
        if text[end].isspace() and not text[end - 1].isspace():
            start = end
            while text[start].isspace():
                start += 1
            return _Gap(_WORD, end, start)
    return None


def _find_gaps(text: str) -> Iterator[_Gap]:
    """Yield the gaps of a text in order, without those between words."""
    first = len(text) - len(text.lstrip())
    spans = ((match.start() + (match[0][0] != "\n"), match.end()) for match in _GAP.finditer(text, first))
    line_start = 0
    for end, following in itertools.chain([(0, first)] * (first > 0), spans):
        while text[end - 1 : end].isspace():  # before a line end
            end -= 1
        newlines = text.count("\n", end, following)
        start = text.rfind("\n", end, following) + 1 if newlines else following
        is_code = text[line_start : line_start + 1] in (" ", "\t", "|")
        if newlines > 1:
            level = _PARAGRAPH
        elif is_code:
            level = _SENTENCE if newlines else _WORD
        else:
            level = _SENTENCE if text[end - 1 : end] in _SENTENCE_ENDS else _LINE
        yield _Gap(level, end, start)
        if newlines:
            line_start = start

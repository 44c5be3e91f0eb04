"""ROUGE-L of texts in English and Chinese, as KAgentBench counts it (Lin 2004; Pan et al. 2023, 2312.04889).

Words are those of the Penn Treebank; one that holds a letter of a script without case, as Chinese, counts by
letters. Sentences end at a mark with a space behind it: NLTK, which KAgentBench uses, asks a model for that.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Sequence

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_SPACED = tuple(
    (re.compile(pattern), spaced)
    for pattern, spaced in (
        (r"\.{3}|--", r" \g<0> "),
        (r'[;@#$%&?!()\[\]{}<>"]', r" \g<0> "),
        (r"[,:](?!\d)", r" \g<0> "),
        (r"(?<=[^.\s])\.(?=[\s\])}>\"']*$)", r" . "),
        (r"(?<=[^'\s])'(?=\s|$)", r" '"),
        (r"(?i)n't\b", r" \g<0>"),
        (r"(?i)(?<=\w)'(?:s|m|d|ll|re|ve)\b", r" \g<0>"),
        (r"(?i)\b(can)(not)\b", r"\1 \2"),
    )
)


def tokens(text: str) -> list[str]:
    """Return the words of `text`, Chinese by characters."""
    found: list[str] = []
    for sentence in _SENTENCE.split(text):
        for pattern, spaced in _SPACED:
            sentence = pattern.sub(spaced, sentence)
        for word in sentence.split():
            uncased = any(unicodedata.category(letter) == "Lo" for letter in word)
            found += list(word) if uncased else [word]
    return found


def rouge_l(left: str, right: str) -> float:
    """Return the F1 of the longest common subsequence of words, from 0 to 1; 0 if either text has none."""
    ours, theirs = tokens(left), tokens(right)
    return 2 * common_length(ours, theirs) / (len(ours) + len(theirs)) if ours and theirs else 0.0


def common_length(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence, rows of the table as bits (Hyyrö 2004)."""
    places: dict[Hashable, int] = {}
    for place, item in enumerate(left):
        places[item] = places.get(item, 0) | 1 << place
    everything = (1 << len(left)) - 1
    row = everything
    for item in right:
        matched = row & places.get(item, 0)
        row = ((row + matched) | (row - matched)) & everything
    return len(left) - row.bit_count()

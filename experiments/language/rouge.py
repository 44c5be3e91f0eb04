"""ROUGE-L of texts in English and Chinese, as in KAgentBench (Lin 2004; Pan et al. 2023, arXiv 2312.04889).

Words follow the Penn Treebank rules; a word with letters of a caseless script, such as Chinese, is split into
its letters. Sentences end at a punctuation mark followed by a space, whereas KAgentBench uses NLTK's model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Sequence

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_TOKEN_PATTERNS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
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
    """Split `text` into words, and Chinese into characters."""
    words: list[str] = []
    for sentence in _SENTENCE.split(text):
        for pattern, replacement in _TOKEN_PATTERNS:
            sentence = pattern.sub(replacement, sentence)
        for word in sentence.split():
            caseless = any(unicodedata.category(letter) == "Lo" for letter in word)
            words += list(word) if caseless else [word]
    return words


def rouge_l(left: str, right: str) -> float:
    """Return the F1 of the longest common subsequence of words, from 0 to 1; 0 if a text has no words."""
    first, second = tokens(left), tokens(right)
    return 2 * common_length(first, second) / (len(first) + len(second)) if first and second else 0.0


def common_length(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence of two sequences.

    Source: Hyyrö 2004, a bit-parallel algorithm.
    """
    places: dict[Hashable, int] = {}
    for place, item in enumerate(left):
        places[item] = places.get(item, 0) | 1 << place
    everything = (1 << len(left)) - 1
    row = everything
    for item in right:
        matches = row & places.get(item, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(left) - row.bit_count()

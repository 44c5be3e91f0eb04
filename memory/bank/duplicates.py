"""The same thing said again, found in constant time however much is stored.

Candidates share a mark: bands of a MinHash of the content words (Broder 1997), and of the signs of random
projections of the embedding (Charikar 2002). A candidate is the same if the new text says nothing more: its
words are among the candidate's, or its embedding is very near; and numbers, names, symbols, negation are
alike. The signs of embeddings agree by chance with those of ever more records, so these are compared before a
text is read.
"""

from __future__ import annotations

import hashlib
import re
import struct
import unicodedata
from typing import NamedTuple

import numpy as np

from scrubjay.memory.bank.file.words import STOP_WORDS, normalise, words

_BANDS, _ROWS = 6, 3
_PLANES, _SIGNS = 8, 12
_OVERLAP = 0.75
COSINE = 0.97  # bread and milk, in one sentence, are 0.965 alike to a small multilingual model
# A run of spaces and stops is tried from its beginning alone: from each place in it would take its square.
_SENTENCE_START = re.compile(r"(?:^|(?<![.!?:;\s])[^\S\n]*[.!?:;\n][.!?:;\s]*)[A-Z](?=[a-z'’ ])")
_NEGATION = re.compile(
    r"\b(not|no|never|none|nor|neither|without|cannot|stopped|quit|hardly)\b|n['’]t\b|[不没無无未别非]",
    re.IGNORECASE,
)
_NAME = re.compile(r"\b(?:[A-Z]\w*|[^\W\d]*\d\w*)")
# What no word tells: -5 and .5, 1.2 and 1/2, 2*3, !=; and what else is a symbol, as in C++ and C#, 5 $, 👍.
_SIGN = re.compile(
    r"(?<!\w)[-.](?=\d)|(?<=\d)[.,:/](?=\d)|(?<=\w)[*/^](?=\w)|(?<=\w) [*/^] (?=\w)|(?<![\w!])!(?=[\w=])"
    r"|([^\w\s])"
)
_SYMBOLS = ("Sm", "Sc", "So")
_COURTESY = {"please", "remember", "note", "hi", "hello", "hey", "ok", "okay", "thanks", "actually", "really"}
_SUFFIX = re.compile(r"(ations?|ings?|ness|ments?|ies|ied|ed|es|ers?|ly|ic|s|y|e)$")
_RANDOM = np.random.default_rng(1997)
_MULTIPLIERS = _RANDOM.integers(1, 2**63, size=_BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class Meaning(NamedTuple):
    """What of a text decides whether another says the same."""

    order: tuple[str, ...]
    stems: frozenset[str]
    names: frozenset[str]
    signs: tuple[str, ...]
    denies: bool
    asks: bool
    vector: np.ndarray | None


class Marks(NamedTuple):
    """Signed 64-bit numbers of which texts that say the same most likely share one."""

    by_words: list[int]
    by_vector: list[int]


def meaning_of(text: str, vector: np.ndarray | None) -> Meaning:
    """Return stems in order, content stems, names and numbers, signs, negation, question, the embedding."""
    every = words(text)
    stem_of = {word: _stem(word) for word in every}
    content = stem_of.keys() - STOP_WORDS - _COURTESY or stem_of.keys()
    text = normalise(text)
    # A capital that begins a sentence is no sign of a name.
    running = _SENTENCE_START.sub(lambda start: start[0].lower(), text)
    names = {_stem(part) for name in _NAME.findall(running) for part in words(name) if part not in STOP_WORDS}
    return Meaning(
        order=tuple(map(stem_of.__getitem__, every)),
        stems=frozenset(map(stem_of.__getitem__, content)),
        names=frozenset(names),
        signs=tuple(sign[0].strip() for sign in _SIGN.finditer(text.replace("−", "-")) if _tells(sign[1])),
        denies=_NEGATION.search(text) is not None,
        asks=text.rstrip().endswith("?"),
        vector=vector,
    )


def says_no_more(new: Meaning, old: Meaning) -> bool:
    """Return whether what is new was said already."""
    if (new.signs, new.denies, new.asks) != (old.signs, old.denies, old.asks):
        return False
    names = new.names | old.names
    if _in_order(new, names) != _in_order(old, names):
        return False
    if new.stems and new.stems <= old.stems and len(new.stems) >= _OVERLAP * len(old.stems):
        return True
    if new.vector is None or old.vector is None:
        return False
    return float(new.vector @ old.vector) >= COSINE


def _tells(mark: str | None) -> bool:
    return mark is None or mark in "#%‰" or unicodedata.category(mark) in _SYMBOLS


def _in_order(meaning: Meaning, names: frozenset[str]) -> list[str]:
    return [stem for stem in meaning.order if stem in names]


def digest_of(scope: str, text: str) -> bytes:
    """Return the hash that equal texts of one scope share, however spaced."""
    return hashlib.blake2b("\0".join([scope, *normalise(text).split()]).encode(), digest_size=16).digest()


def marks_of(scope: str, meaning: Meaning) -> Marks:
    """Return the marks of a text among those of its scope."""
    by_words: list[bytes] = []
    by_vector: list[bytes] = []
    if meaning.stems:
        hashes = np.array([_hash(stem.encode()) for stem in meaning.stems], dtype=np.uint64)
        mixed = hashes[:, None] * _MULTIPLIERS
        mixed ^= mixed >> np.uint64(32)
        smallest = (mixed * _MULTIPLIERS).min(axis=0).reshape(_BANDS, _ROWS)
        by_words = [b"w%d" % i + row.tobytes() for i, row in enumerate(smallest)]
    if meaning.vector is not None:
        signs = (meaning.vector @ _planes(len(meaning.vector)) > 0).reshape(_PLANES, _SIGNS)
        by_vector = [b"v%d" % i + row.tobytes() for i, row in enumerate(signs)]
    mark = scope.encode()
    return Marks(*([_hash(mark + band) - 2**63 for band in bands] for bands in (by_words, by_vector)))


def pack_marks(marks: list[int]) -> bytes:
    """Return marks as bytes."""
    return struct.pack(f"<{len(marks)}q", *marks)


def unpack_marks(packed: bytes) -> tuple[int, ...]:
    """Return the marks that `pack_marks` packed."""
    return struct.unpack(f"<{len(packed) // 8}q", packed)


def _planes(dimension: int) -> np.ndarray:
    if dimension not in _planes_of:
        random = np.random.default_rng(2002)
        _planes_of[dimension] = random.standard_normal((dimension, _PLANES * _SIGNS), dtype=np.float32)
    return _planes_of[dimension]


_planes_of: dict[int, np.ndarray] = {}


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _stem(word: str) -> str:
    for _ in range(2):  # "Mondays", "meetings"
        stem = _SUFFIX.sub("", word)
        word = stem if len(stem) >= 3 else word
    return word

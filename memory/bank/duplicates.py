"""Near-duplicate detection by locality-sensitive hashing. The cost does not grow with the number of records.

Two texts are compared only if they share a mark, which is a locality-sensitive hash. Some marks are bands of
a MinHash of the content words (Broder 1997). Other marks are bands of the signs of random projections of the
embedding (Charikar 2002). A new text is a duplicate if it adds nothing to the old text: its words are a
subset of the old words, or its embedding is very near. In both cases numbers, names, symbols, negation and
question marks must agree. In a large bank many projections agree by chance. Embeddings are therefore compared
before texts are read.
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
COSINE = 0.97  # two sentences that differ in "bread" and "milk" reach 0.965 in a small multilingual model
# Match a run of spaces and punctuation only from its start: matching from each position takes quadratic time.
_SENTENCE_START = re.compile(r"(?:^|(?<![.!?:;\s])[^\S\n]*[.!?:;\n][.!?:;\s]*)[A-Z](?=[a-z'’ ])")
_NEGATION = re.compile(
    r"\b(not|no|never|none|nor|neither|without|cannot|stopped|quit|hardly)\b|n['’]t\b|[不没無无未别非]",
    re.IGNORECASE,
)
_NAME = re.compile(r"\b(?:[A-Z]\w*|[^\W\d]*\d\w*)")
# Meaning outside words: -5 and .5, 1.2 and 1/2, 2*3, !=; and other symbols, as in C++ and C#, 5 $, 👍.
_SYMBOL = re.compile(
    r"(?<!\w)[-.](?=\d)|(?<=\d)[.,:/](?=\d)|(?<=\w)[*/^](?=\w)|(?<=\w) [*/^] (?=\w)|(?<![\w!])!(?=[\w=])"
    r"|([^\w\s])"
)
_SYMBOL_CATEGORIES = ("Sm", "Sc", "So")
_COURTESY = {"please", "remember", "note", "hi", "hello", "hey", "ok", "okay", "thanks", "actually", "really"}
_SUFFIX = re.compile(r"(ations?|ings?|ness|ments?|ies|ied|ed|es|ers?|ly|ic|s|y|e)$")
_RANDOM = np.random.default_rng(1997)
_MULTIPLIERS = _RANDOM.integers(1, 2**63, size=_BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class TextFeatures(NamedTuple):
    """Features that decide whether two texts are duplicates."""

    all_stems: tuple[str, ...]
    """Stems of all words, in order."""
    stems: frozenset[str]
    """Stems of the content words."""
    names: frozenset[str]
    """Stems of the names in the text, and all its numbers."""
    symbols: tuple[str, ...]
    has_negation: bool
    is_question: bool
    vector: np.ndarray | None


class Marks(NamedTuple):
    """Locality-sensitive hashes as signed 64-bit integers. Duplicates very likely share at least one."""

    by_words: list[int]
    by_vector: list[int]


def extract_features(text: str, vector: np.ndarray | None) -> TextFeatures:
    """Return the features of a text: stems, names and numbers, symbols, negation, question, embedding."""
    all_words = words(text)
    stem_of = {word: _stem(word) for word in all_words}
    content = stem_of.keys() - STOP_WORDS - _COURTESY or stem_of.keys()
    text = normalise(text)
    # A capital letter at the start of a sentence does not indicate a name.
    running = _SENTENCE_START.sub(lambda start: start[0].lower(), text)
    names = {_stem(part) for name in _NAME.findall(running) for part in words(name) if part not in STOP_WORDS}
    return TextFeatures(
        all_stems=tuple(map(stem_of.__getitem__, all_words)),
        stems=frozenset(map(stem_of.__getitem__, content)),
        names=frozenset(names),
        symbols=tuple(
            sign[0].strip() for sign in _SYMBOL.finditer(text.replace("−", "-")) if _is_significant(sign[1])
        ),
        has_negation=_NEGATION.search(text) is not None,
        is_question=text.rstrip().endswith("?"),
        vector=vector,
    )


def is_duplicate(new: TextFeatures, old: TextFeatures) -> bool:
    """Return True if the new text adds nothing to the old one."""
    if (new.symbols, new.has_negation, new.is_question) != (old.symbols, old.has_negation, old.is_question):
        return False
    names = new.names | old.names
    if _select_stems(new, names) != _select_stems(old, names):
        return False
    if new.stems and new.stems <= old.stems and len(new.stems) >= _OVERLAP * len(old.stems):
        return True
    if new.vector is None or old.vector is None:
        return False
    return float(new.vector @ old.vector) >= COSINE


def _is_significant(mark: str | None) -> bool:
    return mark is None or mark in "#%‰" or unicodedata.category(mark) in _SYMBOL_CATEGORIES


def _select_stems(features: TextFeatures, names: frozenset[str]) -> list[str]:
    return [stem for stem in features.all_stems if stem in names]


def compute_digest(scope: str, text: str) -> bytes:
    """Return a hash of a scope (namespace, kind and trust) and a text. White space does not matter."""
    return hashlib.blake2b("\0".join([scope, *normalise(text).split()]).encode(), digest_size=16).digest()


def compute_marks(scope: str, features: TextFeatures) -> Marks:
    """Return the locality-sensitive hashes of a text.

    The hashes depend on the scope. Texts with different namespace, kind or trust get different hashes.
    """
    by_words: list[bytes] = []
    by_vector: list[bytes] = []
    if features.stems:
        hashes = np.array([_hash(stem.encode()) for stem in features.stems], dtype=np.uint64)
        products = hashes[:, None] * _MULTIPLIERS
        products ^= products >> np.uint64(32)
        smallest = (products * _MULTIPLIERS).min(axis=0).reshape(_BANDS, _ROWS)
        by_words = [b"w%d" % i + row.tobytes() for i, row in enumerate(smallest)]
    if features.vector is not None:
        signs = (features.vector @ _planes(len(features.vector)) > 0).reshape(_PLANES, _SIGNS)
        by_vector = [b"v%d" % i + row.tobytes() for i, row in enumerate(signs)]
    mark = scope.encode()
    return Marks(*([_hash(mark + band) - 2**63 for band in bands] for bands in (by_words, by_vector)))


def pack_marks(marks: list[int]) -> bytes:
    """Pack the locality-sensitive hashes (marks) of a text into bytes."""
    return struct.pack(f"<{len(marks)}q", *marks)


def unpack_marks(packed: bytes) -> tuple[int, ...]:
    """Return the locality-sensitive hashes (marks) of a text from the bytes of `pack_marks`."""
    return struct.unpack(f"<{len(packed) // 8}q", packed)


def _planes(dimension: int) -> np.ndarray:
    if dimension not in _planes_cache:
        random = np.random.default_rng(2002)
        _planes_cache[dimension] = random.standard_normal((dimension, _PLANES * _SIGNS), dtype=np.float32)
    return _planes_cache[dimension]


_planes_cache: dict[int, np.ndarray] = {}


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _stem(word: str) -> str:
    for _ in range(2):  # "Mondays", "meetings"
        stem = _SUFFIX.sub("", word)
        word = stem if len(stem) >= 3 else word
    return word

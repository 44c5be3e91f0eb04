"""Near-duplicate detection by locality-sensitive hashing. The cost does not grow with the number of records.

Two texts are compared only if they share a mark, which is a locality-sensitive hash. Some marks are bands of
a MinHash of the content words (Broder 1997). Other marks are bands of the signs of random projections of the
embedding (Charikar 2002). A new text is a duplicate if it adds nothing to the old text: its words are a
subset of the old words, or its embedding is very near. In both cases numbers, names, symbols, negation and
question marks must agree. In a large bank many projections agree by chance. Embeddings are therefore compared
before texts are read.

A draft is compared twice: with the records of the file before the transaction, since this is slow, and inside
the transaction with the records that were written since.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sqlite3
import unicodedata
from collections.abc import Iterable

import numpy as np

from scrubjay.memory.bank.file.damage import UnreadableError, unpack_vectors
from scrubjay.memory.bank.file.postings import index_entry
from scrubjay.memory.bank.file.store import Store, read_vectors, select
from scrubjay.memory.bank.file.words import STOP_WORDS, normalise, split_words
from scrubjay.memory.bank.index import append, merge
from scrubjay.memory.bank.record import Draft, Fingerprint, Marks, TextFeatures
from scrubjay.memory.bank.title import find_title

_MAX_CANDIDATES = 8  # newest records compared per mark
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


def prepare_draft(store: Store, draft: Draft) -> Draft:
    """Return a draft with its index data, after a search for duplicates among the records in the file.

    This is slow: call it before the transaction. `write_drafts` then compares the draft only with records
    that were written since.
    """
    fingerprint = compute_fingerprint(draft)
    if draft.merge:
        with store.reading() as connection:
            if _find_equal(connection, draft, fingerprint) is not None:
                return draft._replace(fingerprint=fingerprint)
            (newest,) = connection.execute("SELECT MAX(number) FROM records").fetchone()
            similar = _find_similar(connection, draft, fingerprint)
        duplicate = next((number for number in similar if _adds_nothing(store, number, fingerprint)), None)
        fingerprint = fingerprint._replace(last_compared=newest or 0, duplicate=duplicate)
    return draft._replace(fingerprint=fingerprint)


def write_drafts(connection: sqlite3.Connection, drafts: Iterable[Draft], foreign: bool) -> list[str]:
    """Merge each draft into the record that it duplicates, or insert it. Return one record id per draft.

    In a `foreign` bank every record counts as the text of a tool, which any text may supersede.
    """
    ids: list[str] = []
    features: dict[int, TextFeatures] = {}  # of records that the transaction has read or written
    chunk_of_section: dict[int, int] = {}
    for draft in drafts:
        fingerprint = draft.fingerprint or compute_fingerprint(draft)
        number = _find_duplicate(connection, draft, fingerprint, features) if draft.merge else None
        if number is not None:
            ids.append(merge(connection, number, draft))
        else:
            number, id = append(connection, draft, fingerprint, chunk_of_section, foreign)
            features[number] = fingerprint.features
            ids.append(id)
    return ids


def compute_fingerprint(draft: Draft) -> Fingerprint:
    """Compute the index data of a draft for keyword search and for the search for duplicates.

    With an embedding model, set the draft's `vector` before this call.
    """
    scope = f"{draft.namespace}\0{draft.kind}\0{draft.trust}"
    features = extract_features(draft.text, draft.vector)
    digest, marks = compute_digest(scope, draft.text), compute_marks(scope, features)
    features = features._replace(vector=_vector_of_text(draft.vector, draft.provenance))
    entry = index_entry(draft.text, draft.kind, draft.namespace, draft.observed, draft.zone, draft.provenance)
    return Fingerprint(features, digest, marks, entry)


def _find_duplicate(
    connection: sqlite3.Connection, draft: Draft, fingerprint: Fingerprint, features: dict[int, TextFeatures]
) -> int | None:
    if (number := _find_equal(connection, draft, fingerprint)) is not None:
        return number
    after = fingerprint.last_compared
    if fingerprint.duplicate is not None:
        if select(connection, "number", [fingerprint.duplicate], *_validity_condition(draft)):
            return fingerprint.duplicate
        after = 0
    for number in _find_similar(connection, draft, fingerprint, after):
        if number not in features:
            content = _read_content(connection, number)
            assert content is not None  # found in the same transaction
            features[number] = extract_features(*content)
        if is_duplicate(fingerprint.features, features[number]):
            return number
    return None


def _find_equal(connection: sqlite3.Connection, draft: Draft, fingerprint: Fingerprint) -> int | None:
    """Return the number of a record with the draft's text and validity; None if there is none."""
    validity, values = _validity_condition(draft)
    row = connection.execute(
        f"SELECT number FROM records WHERE digest = ? AND {validity}", (fingerprint.digest, *values)
    ).fetchone()
    return row[0] if row else None


def _find_similar(
    connection: sqlite3.Connection, draft: Draft, fingerprint: Fingerprint, after: int = 0
) -> list[int]:
    """Return the record numbers of possible duplicates of a draft, oldest first.

    Only records with the same validity as the draft and with numbers above `after` are searched.
    """
    numbers = _find_marked(connection, fingerprint.marks.by_words, after)
    if draft.vector is not None:
        near = _find_marked(connection, fingerprint.marks.by_vector, after)
        near_numbers, vectors = read_vectors(connection, near, len(draft.vector))
        cosines = vectors @ draft.vector
        numbers |= {number for number, c in zip(near_numbers, cosines, strict=True) if c >= COSINE}
    return sorted(number for (number,) in select(connection, "number", numbers, *_validity_condition(draft)))


def _find_marked(connection: sqlite3.Connection, marks: list[int], after: int) -> set[int]:
    """Return the numbers above `after` of the newest records with each mark."""
    return {
        number
        for mark in marks
        for (number,) in connection.execute(
            "SELECT number FROM marks WHERE mark = ? AND number > ? ORDER BY number DESC LIMIT ?",
            (mark, after, _MAX_CANDIDATES),
        )
    }


def _adds_nothing(store: Store, number: int, fingerprint: Fingerprint) -> bool:
    """Return True if the record still exists and the draft adds nothing to it."""
    with store.reading() as connection:
        content = _read_content(connection, number)
    return content is not None and is_duplicate(fingerprint.features, extract_features(*content))


def _validity_condition(draft: Draft) -> tuple[str, tuple[float | None, float | None]]:
    """Return an SQL condition, and the values of its placeholders.

    The condition holds for records with the same start and end of validity as the draft.
    """
    return "valid_from IS ? AND valid_to IS ?", (draft.valid_from, draft.valid_to)


def _read_content(connection: sqlite3.Connection, number: int) -> tuple[str, np.ndarray | None] | None:
    """Return text and embedding of a record; None if the record does not exist."""
    row = connection.execute(
        "SELECT text, vector, provenance FROM records LEFT JOIN vectors USING (number) WHERE number = ?",
        (number,),
    ).fetchone()
    if row and not isinstance(row[0], str):
        raise UnreadableError(f"record {number} has {row[0]!r:.80} in place of a text")
    if not row:
        return None
    text, vector, provenance = row
    return text, None if vector is None else _vector_of_text(unpack_vectors([vector])[0], provenance)


def _vector_of_text(vector: np.ndarray | None, provenance: str) -> np.ndarray | None:
    """Return an embedding; None if a title may be in it, since records with one title are always near."""
    return None if find_title(provenance) else vector


def extract_features(text: str, vector: np.ndarray | None) -> TextFeatures:
    """Return the features of a text: stems, names and numbers, symbols, negation, question, embedding."""
    text = normalise(text)
    # A capital letter at the start of a sentence does not indicate a name.
    running = _SENTENCE_START.sub(lambda start: start[0].lower(), text)
    all_words, name_words = split_words(text), split_words(" ".join(_NAME.findall(running)))
    stem_of = {word: _stem(word) for word in all_words}
    content = stem_of.keys() - STOP_WORDS - _COURTESY or stem_of.keys()
    return TextFeatures(
        all_stems=tuple(map(stem_of.__getitem__, all_words)),
        stems=frozenset(map(stem_of.__getitem__, content)),
        names=frozenset(map(_stem, set(name_words) - STOP_WORDS)),
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


@functools.cache
def _planes(dimension: int) -> np.ndarray:
    random = np.random.default_rng(2002)
    return random.standard_normal((dimension, _PLANES * _SIGNS), dtype=np.float32)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _stem(word: str) -> str:
    for _ in range(2):  # "Mondays", "meetings"
        stem = _SUFFIX.sub("", word)
        word = stem if len(stem) >= 3 else word
    return word

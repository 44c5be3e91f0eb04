"""Writing to a bank: merge duplicates, end the validity of superseded records, insert new records."""

from __future__ import annotations

import json
import sqlite3
import uuid
from datetime import UTC, tzinfo
from typing import Any, NamedTuple

import numpy as np

from scrubjay.memory.bank import duplicates
from scrubjay.memory.bank.file.damage import UnreadableError, unpack_vectors
from scrubjay.memory.bank.file.record import MAX_TEXT_LENGTH
from scrubjay.memory.bank.file.store import Store, select
from scrubjay.memory.bank.file.words import day_words, index_text
from scrubjay.memory.bank.search.filter import scope_words
from scrubjay.memory.bank.search.segments import forget_in_segment

_MAX_PAUSE = 86400.0  # seconds without a record after which a new chunk starts
_MAX_CANDIDATES = 8  # newest records compared per mark


class Fingerprint(NamedTuple):
    """Index data of a draft's text, for keyword search and for the search for duplicates."""

    features: duplicates.TextFeatures
    digest: bytes
    """Hash of the text and its scope (namespace, kind and trust)."""
    marks: duplicates.Marks
    indexed_text: str
    """Text for the keyword index."""
    last_compared: int = 0
    """Number of the newest record that the draft was compared with before the transaction."""
    duplicate: int | None = None
    """Number of the oldest record that the draft duplicates, among the records with numbers up to
    `last_compared`; None if there is no such record."""


class Draft(NamedTuple):
    """Record to be written; times are seconds since 1970."""

    text: str
    kind: str
    namespace: str
    trust: str
    provenance: str
    created: float
    observed: float
    valid_from: float | None
    valid_to: float | None
    importance: float
    supersedes: str | None
    merge: bool
    vector: np.ndarray | None
    section: int | None = None
    fingerprint: Fingerprint | None = None
    zone: tzinfo = UTC
    """Time zone of the date that the keyword index stores for the record."""


class Writer:
    """Writer of drafts inside one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._chunk_of_section: dict[int, int] = {}
        self._features: dict[int, duplicates.TextFeatures] = {}

    def write(self, draft: Draft) -> str:
        """Write a draft; return the id of the new record, or of the record that the draft was merged into."""
        fingerprint = draft.fingerprint or compute_fingerprint(draft)
        if draft.merge:
            duplicate = self._find_duplicate(draft, fingerprint)
            if duplicate is not None:
                return self._merge(duplicate, draft)
        if draft.supersedes is not None:
            self._end_validity(draft)
        return self._insert(draft, fingerprint)

    def _find_duplicate(self, draft: Draft, fingerprint: Fingerprint) -> int | None:
        if (number := self.find_equal(draft, fingerprint)) is not None:
            return number
        after = fingerprint.last_compared
        if fingerprint.duplicate is not None:
            if select(self._connection, "number", [fingerprint.duplicate], *_validity_condition(draft)):
                return fingerprint.duplicate
            after = 0
        similar = self.find_similar(draft, fingerprint, after)
        return next((number for number in similar if self.is_duplicate(number, fingerprint)), None)

    def find_equal(self, draft: Draft, fingerprint: Fingerprint) -> int | None:
        """Return the number of a record with the draft's text and validity; None if there is none."""
        validity, values = _validity_condition(draft)
        row = self._connection.execute(
            f"SELECT number FROM records WHERE digest = ? AND {validity}", (fingerprint.digest, *values)
        ).fetchone()
        return row[0] if row else None

    def find_similar(self, draft: Draft, fingerprint: Fingerprint, after: int = 0) -> list[int]:
        """Return the record numbers of possible duplicates of a draft, oldest first.

        Only records with the same validity as the draft and with numbers above `after` are searched.
        """
        numbers = self._candidates(fingerprint.marks.by_words, after)
        numbers |= self._similar_vectors(draft.vector, fingerprint.marks.by_vector, after)
        return sorted(
            number for (number,) in select(self._connection, "number", numbers, *_validity_condition(draft))
        )

    def is_duplicate(self, number: int, fingerprint: Fingerprint) -> bool:
        """Return True if a draft adds nothing to a record."""
        if number not in self._features:
            content = _read_content(self._connection, number)
            assert content is not None  # found in the same transaction
            self._features[number] = duplicates.extract_features(*content)
        return duplicates.is_duplicate(fingerprint.features, self._features[number])

    def _candidates(self, marks: list[int], after: int) -> set[int]:
        return {
            number
            for mark in marks
            for (number,) in self._connection.execute(
                "SELECT number FROM marks WHERE mark = ? AND number > ? ORDER BY number DESC LIMIT ?",
                (mark, after, _MAX_CANDIDATES),
            )
        }

    def _similar_vectors(self, vector: np.ndarray | None, marks: list[int], after: int) -> set[int]:
        """Return the candidates whose embeddings are near enough for a duplicate."""
        if vector is None:
            return set()
        candidates = self._candidates(marks, after)
        places = ", ".join("?" * len(candidates))
        rows = self._connection.execute(
            f"SELECT number, vector FROM vectors WHERE number IN ({places})", [*candidates]
        ).fetchall()
        if not rows:
            return set()
        numbers, blobs = zip(*rows, strict=True)
        cosines = unpack_vectors(list(blobs), len(vector)) @ vector
        return {number for number, c in zip(numbers, cosines, strict=True) if c >= duplicates.COSINE}

    def _merge(self, number: int, draft: Draft) -> str:
        self._connection.execute(
            "INSERT INTO sayings VALUES (?, ?, ?, ?)", (number, draft.text, draft.observed, draft.provenance)
        )
        (id,) = self._connection.execute(
            "UPDATE records SET sayings = sayings + 1, renewed = MAX(renewed, ?) WHERE number = ? RETURNING "
            "id",
            (draft.observed, number),
        ).fetchone()
        return id

    def _end_validity(self, draft: Draft) -> None:
        row = self._connection.execute(
            "SELECT number, trust FROM records WHERE id = ?", (draft.supersedes,)
        ).fetchone()
        if row is None:
            raise ValueError(f"supersedes={draft.supersedes!r}: unknown record; pass an id returned by add")
        number, trust = row
        if draft.trust == "tool" and trust != "tool":
            raise ValueError(
                f"supersedes={draft.supersedes!r}: a text of trust 'tool' cannot replace a record of trust "
                f"{trust!r}; let the agent or the user confirm the text"
            )
        end = draft.observed if draft.valid_from is None else draft.valid_from
        self._connection.execute(
            "UPDATE records SET valid_to = MIN(?, COALESCE(valid_to, ?)) WHERE number = ?", (end, end, number)
        )

    def _insert(self, draft: Draft, fingerprint: Fingerprint) -> str:
        id = uuid.uuid4().hex
        if draft.valid_from is None and draft.supersedes is not None:
            draft = draft._replace(valid_from=draft.observed)
        chunk, position = self._find_position(draft)
        columns = {"id": id, "renewed": draft.observed, "chunk": chunk, "place": position}
        number = self.insert(draft, fingerprint, columns)
        self._features[number] = fingerprint.features
        if chunk == 0:
            self._open_chunk(draft, number)
        return id

    def insert(self, draft: Draft, fingerprint: Fingerprint, columns: dict[str, Any]) -> int:
        """Insert a record and its index entries; return its number.

        `columns` has the values that are not part of a draft.
        """
        marks = [*fingerprint.marks.by_words, *fingerprint.marks.by_vector]
        row: dict[str, Any] = {
            "text": draft.text,
            "kind": draft.kind,
            "namespace": draft.namespace,
            "trust": draft.trust,
            "provenance": draft.provenance,
            "created": draft.created,
            "observed": draft.observed,
            "valid_from": draft.valid_from,
            "valid_to": draft.valid_to,
            "importance": draft.importance,
            "supersedes": draft.supersedes,
            "digest": fingerprint.digest,
            "marks": duplicates.pack_marks(marks),
            **columns,
        }
        connection = self._connection
        number = connection.execute(
            f"INSERT INTO records ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
        ).lastrowid
        assert number is not None
        connection.execute(
            "INSERT INTO words (rowid, scope, body) VALUES (?, ?, ?)",
            (number, scope_words(draft.namespace, draft.kind), fingerprint.indexed_text),
        )
        connection.executemany(
            "INSERT OR IGNORE INTO marks VALUES (?, ?)",
            [(mark, number) for mark in marks],
        )
        if draft.vector is not None:
            connection.execute("INSERT INTO vectors VALUES (?, ?)", (number, draft.vector.tobytes()))
        return number

    def forget(self, id: str, bank: str) -> bool:
        """Delete a record and its index entries, also in the index files beside the bank file `bank`.

        Return True if the record existed.
        """
        connection = self._connection
        row = connection.execute(
            "SELECT number, marks, vector FROM records LEFT JOIN vectors USING (number) WHERE id = ?",
            (id,),
        ).fetchone()
        if row is None:
            return False
        number, marks, vector = row
        connection.executemany(
            "DELETE FROM marks WHERE mark = ? AND number = ?",
            [(mark, number) for mark in duplicates.unpack_marks(marks)],
        )
        connection.execute("DELETE FROM words WHERE rowid = ?", (number,))
        if sqlite3.sqlite_version_info < (3, 42):
            connection.execute("INSERT INTO words (words) VALUES ('optimize')")
        connection.execute("DELETE FROM records WHERE number = ?", (number,))
        connection.execute("UPDATE facts SET value = value + 1 WHERE name = 'deletions'")
        forget_in_segment(connection, bank, number, vector)
        return True

    def _find_position(self, draft: Draft) -> tuple[int, int]:
        """Return the chunk that the draft continues (0: a new chunk) and the draft's position in it."""
        if draft.section is not None:
            chunk = self._chunk_of_section.get(draft.section, 0)
        else:
            newest_row = self._connection.execute(
                "SELECT chunk, renewed FROM records WHERE namespace = ? AND kind = ? ORDER BY number DESC "
                "LIMIT 1",
                (draft.namespace, draft.kind),
            ).fetchone()
            chunk = 0
            # Sections of documents have negative chunk numbers; they are never continued.
            if (
                newest_row is not None
                and newest_row[0] > 0
                and abs(draft.observed - newest_row[1]) <= _MAX_PAUSE
            ):
                chunk = newest_row[0]
        (newest,) = self._connection.execute(
            "SELECT MAX(place) FROM records WHERE chunk = ?", (chunk,)
        ).fetchone()
        return chunk, 0 if newest is None else newest + 1

    def _open_chunk(self, draft: Draft, number: int) -> None:
        chunk = number if draft.section is None else -number
        if draft.section is not None:
            self._chunk_of_section[draft.section] = chunk
        self._connection.execute("UPDATE records SET chunk = ? WHERE number = ?", (chunk, number))


def compute_fingerprint(draft: Draft) -> Fingerprint:
    """Compute the index data of a draft for keyword search and for the search for duplicates.

    With an embedding model, set the draft's `vector` before this call.
    """
    scope = f"{draft.namespace}\0{draft.kind}\0{draft.trust}"
    features = duplicates.extract_features(draft.text, draft.vector)
    digest, marks = duplicates.compute_digest(scope, draft.text), duplicates.compute_marks(scope, features)
    indexed_text = f"{index_text(draft.text)} {day_words(draft.text, draft.observed, draft.zone)}"
    return Fingerprint(features, digest, marks, indexed_text)


def prepare_draft(store: Store, draft: Draft) -> Draft:
    """Return a draft with its index data, after a search for duplicates among the records in the file.

    This is slow: call it before the transaction. The transaction then compares the draft only with records
    that were written since.
    """
    fingerprint = compute_fingerprint(draft)
    if draft.merge:
        with store.reading() as connection:
            writer = Writer(connection)
            if writer.find_equal(draft, fingerprint) is not None:
                return draft._replace(fingerprint=fingerprint)
            (newest,) = connection.execute("SELECT MAX(number) FROM records").fetchone()
            similar = writer.find_similar(draft, fingerprint)
        duplicate = next(
            (number for number in similar if _duplicates_record(store, number, fingerprint)), None
        )
        fingerprint = fingerprint._replace(last_compared=newest or 0, duplicate=duplicate)
    return draft._replace(fingerprint=fingerprint)


def _duplicates_record(store: Store, number: int, fingerprint: Fingerprint) -> bool:
    """Return True if the record still exists and the draft adds nothing to it."""
    with store.reading() as connection:
        content = _read_content(connection, number)
    return content is not None and duplicates.is_duplicate(
        fingerprint.features, duplicates.extract_features(*content)
    )


def _validity_condition(draft: Draft) -> tuple[str, tuple[float | None, float | None]]:
    """Return an SQL condition, and the values of its placeholders.

    The condition holds for records with the same start and end of validity as the draft.
    """
    return "valid_from IS ? AND valid_to IS ?", (draft.valid_from, draft.valid_to)


def _read_content(connection: sqlite3.Connection, number: int) -> tuple[str, np.ndarray | None] | None:
    """Return text and embedding of a record; None if the record does not exist."""
    row = connection.execute(
        "SELECT text, vector FROM records LEFT JOIN vectors USING (number) WHERE number = ?", (number,)
    ).fetchone()
    if row and not isinstance(row[0], str):
        raise UnreadableError(f"record {number} has {row[0]!r:.80} in place of a text")
    return row and (row[0], None if row[1] is None else unpack_vectors([row[1]])[0])


def encode_provenance(provenance: dict[str, Any]) -> str:
    """Return provenance as JSON. Raises TypeError or ValueError if it is not JSON-serializable."""
    try:
        text = json.dumps(provenance, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"provenance={provenance!r:.200}: must be JSON-serializable: {error}") from None
    check_text("provenance", text)
    return text


def check_memorable(text: str) -> None:
    """Raise ValueError or TypeError if a text cannot be stored."""
    check_length("text", text)
    if not text.strip():
        raise ValueError(f"text={text[:80]!r}: nothing to remember; pass a text that is not blank")
    check_text("text", text)


def check_length(name: str, text: str) -> None:
    """Raise TypeError if `text` is not a string, ValueError if it is longer than `MAX_TEXT_LENGTH`."""
    if not isinstance(text, str):
        raise TypeError(f"{name}={text!r}: pass a string")
    if len(text) > MAX_TEXT_LENGTH:
        raise ValueError(
            f"{name} has {len(text):,} characters, the maximum is {MAX_TEXT_LENGTH:,}; cut it, or store "
            "it as passages with add_document"
        )


def check_text(name: str, text: str) -> None:
    """Raise ValueError if a text contains a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} contains the lone surrogate {error.object[error.start]!r}; decode the text again"
        ) from None

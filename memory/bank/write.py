"""Writing to a bank: join what says the same, end the validity of what is replaced, else a new record."""

from __future__ import annotations

import json
import sqlite3
import uuid
from typing import Any, NamedTuple

import numpy as np

from scrubjay.memory.bank import duplicates
from scrubjay.memory.bank.search.recall import scope_words
from scrubjay.memory.bank.search.words import index_text

_CHUNK_LENGTH = 16
_PAUSE = 1800.0  # seconds of silence that end a segment
_CANDIDATES = 8  # newest records looked at per mark


class Draft(NamedTuple):
    """A record before it is in the file; times are seconds since 1970."""

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


class Writer:
    """Writes drafts inside one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._chunk_of_section: dict[int, int] = {}

    def write(self, draft: Draft) -> str:
        """Return the id of the record that now says what the draft does."""
        meaning, digest, marks = fingerprint(draft)
        if draft.merge:
            same = self._find_same(draft, meaning, digest, marks)
            if same is not None:
                return self._join(same, draft)
        if draft.supersedes is not None:
            self._end(draft)
        return self._insert(draft, digest, marks)

    def _find_same(
        self, draft: Draft, meaning: duplicates.Meaning, digest: bytes, marks: duplicates.Marks
    ) -> int | None:
        validity = "valid_from IS ? AND valid_to IS ?"
        ends = (draft.valid_from, draft.valid_to)
        row = self._connection.execute(
            f"SELECT number FROM records WHERE digest = ? AND {validity}", (digest, *ends)
        ).fetchone()
        if row:
            return row[0]
        candidates = self._candidates(marks.by_words) | self._near(draft.vector, marks.by_vector)
        for number in sorted(candidates):
            row = self._connection.execute(
                "SELECT text, vector FROM records LEFT JOIN vectors USING (number) "
                f"WHERE number = ? AND {validity}",
                (number, *ends),
            ).fetchone()
            if row is None:
                continue
            vector = None if row[1] is None else np.frombuffer(row[1], dtype=np.float32)
            if duplicates.says_no_more(meaning, duplicates.meaning_of(row[0], vector)):
                return number
        return None

    def _candidates(self, marks: list[int]) -> set[int]:
        return {
            number
            for mark in marks
            for (number,) in self._connection.execute(
                "SELECT number FROM marks WHERE mark = ? ORDER BY number DESC LIMIT ?", (mark, _CANDIDATES)
            )
        }

    def _near(self, vector: np.ndarray | None, marks: list[int]) -> set[int]:
        """Return the candidates whose embeddings are near enough to say the same."""
        if vector is None:
            return set()
        candidates = self._candidates(marks)
        places = ", ".join("?" * len(candidates))
        rows = self._connection.execute(
            f"SELECT number, vector FROM vectors WHERE number IN ({places})", [*candidates]
        ).fetchall()
        if not rows:
            return set()
        numbers, blobs = zip(*rows, strict=True)
        cosines = np.frombuffer(b"".join(blobs), dtype=np.float32).reshape(len(rows), -1) @ vector
        return {number for number, c in zip(numbers, cosines, strict=True) if c >= duplicates.COSINE}

    def _join(self, number: int, draft: Draft) -> str:
        self._connection.execute(
            "INSERT INTO sayings VALUES (?, ?, ?, ?)", (number, draft.text, draft.observed, draft.provenance)
        )
        (id,) = self._connection.execute(
            "UPDATE records SET sayings = sayings + 1, renewed = MAX(renewed, ?) WHERE number = ? RETURNING "
            "id",
            (draft.observed, number),
        ).fetchone()
        return id

    def _end(self, draft: Draft) -> None:
        row = self._connection.execute(
            "SELECT number, trust FROM records WHERE id = ?", (draft.supersedes,)
        ).fetchone()
        if row is None:
            raise ValueError(f"supersedes={draft.supersedes!r}: no such record; pass an id that add returned")
        number, trust = row
        if draft.trust == "tool" and trust != "tool":
            raise ValueError(
                f"supersedes={draft.supersedes!r}: what a tool says cannot replace a record of trust "
                f"{trust!r}; "
                "let the agent or the user confirm it"
            )
        end = draft.observed if draft.valid_from is None else draft.valid_from
        self._connection.execute(
            "UPDATE records SET valid_to = MIN(?, COALESCE(valid_to, ?)) WHERE number = ?", (end, end, number)
        )

    def _insert(self, draft: Draft, digest: bytes, marks: duplicates.Marks) -> str:
        id = uuid.uuid4().hex
        if draft.valid_from is None and draft.supersedes is not None:
            draft = draft._replace(valid_from=draft.observed)
        chunk, place = self._place(draft)
        columns = {"id": id, "renewed": draft.observed, "chunk": chunk, "place": place}
        number = self.insert(draft, digest, marks, columns)
        if chunk == 0:
            self._open_chunk(draft, number)
        return id

    def insert(self, draft: Draft, digest: bytes, marks: duplicates.Marks, columns: dict[str, Any]) -> int:
        """Write a record, with what a draft does not say in `columns`, and what finds it.

        Return its number.
        """
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
            "digest": digest,
            "marks": duplicates.pack_marks([*marks.by_words, *marks.by_vector]),
            **columns,
        }
        connection = self._connection
        number = connection.execute(
            f"INSERT INTO records ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
        ).lastrowid
        assert number is not None
        connection.execute(
            "INSERT INTO words (rowid, scope, body) VALUES (?, ?, ?)",
            (number, scope_words(draft.namespace, draft.kind), index_text(draft.text)),
        )
        connection.executemany(
            "INSERT OR IGNORE INTO marks VALUES (?, ?)",
            [(mark, number) for mark in (*marks.by_words, *marks.by_vector)],
        )
        if draft.vector is not None:
            connection.execute("INSERT INTO vectors VALUES (?, ?)", (number, draft.vector.tobytes()))
        return number

    def _place(self, draft: Draft) -> tuple[int, int]:
        """Return the chunk that the draft goes on with, and its place there.

        Chunk 0 for one that it begins.
        """
        if draft.section is not None:
            chunk = self._chunk_of_section.get(draft.section, 0)
        else:
            last = self._connection.execute(
                "SELECT chunk, renewed FROM records WHERE namespace = ? AND kind = ? ORDER BY number DESC "
                "LIMIT 1",
                (draft.namespace, draft.kind),
            ).fetchone()
            chunk = 0
            # A document's sections, whose chunks are below zero, are complete.
            if last is not None and last[0] > 0 and abs(draft.observed - last[1]) <= _PAUSE:
                chunk = last[0]
        (newest,) = self._connection.execute(
            "SELECT MAX(place) FROM records WHERE chunk = ?", (chunk,)
        ).fetchone()
        place = 0 if newest is None else newest + 1
        return (0, 0) if draft.section is None and place == _CHUNK_LENGTH else (chunk, place)

    def _open_chunk(self, draft: Draft, number: int) -> None:
        chunk = number if draft.section is None else -number
        if draft.section is not None:
            self._chunk_of_section[draft.section] = chunk
        self._connection.execute("UPDATE records SET chunk = ? WHERE number = ?", (chunk, number))


def fingerprint(draft: Draft) -> tuple[duplicates.Meaning, bytes, duplicates.Marks]:
    """Return what a draft says, the hash of its text, and the marks by which its like is found."""
    scope = f"{draft.namespace}\0{draft.kind}\0{draft.trust}"
    meaning = duplicates.meaning_of(draft.text, draft.vector)
    return meaning, duplicates.digest_of(scope, draft.text), duplicates.marks_of(scope, meaning)


def encode_provenance(provenance: dict[str, Any]) -> str:
    """Return provenance as JSON. Raises TypeError or ValueError on what JSON cannot hold."""
    try:
        written = json.dumps(provenance, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise TypeError(f"provenance must be JSON: {error}") from None
    check_text("provenance", written)
    return written


def check_text(name: str, text: str) -> None:
    """Raise ValueError on half a surrogate pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds {error.object[error.start]!r}, half a character; decode the text anew"
        ) from None

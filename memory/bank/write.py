"""Writing to a bank: join what says the same, end the validity of what is replaced, else a new record."""

from __future__ import annotations

import json
import sqlite3
import uuid
from datetime import UTC, tzinfo
from typing import Any, NamedTuple

import numpy as np

from scrubjay.memory.bank import duplicates
from scrubjay.memory.bank.file.damage import Unreadable, unpacked
from scrubjay.memory.bank.file.record import LONGEST_TEXT
from scrubjay.memory.bank.file.store import Store, select
from scrubjay.memory.bank.file.words import day_words, index_text
from scrubjay.memory.bank.search.filter import scope_words
from scrubjay.memory.bank.search.segments import forget_in_segment

_PAUSE = 86400.0  # seconds of silence that end a segment
_CANDIDATES = 8  # newest records looked at per mark


class Fingerprint(NamedTuple):
    """What of a draft's text finds it, and its like."""

    meaning: duplicates.Meaning
    digest: bytes
    """The same for equal texts of one scope."""
    marks: duplicates.Marks
    body: str
    """What the keyword index reads."""
    compared: int = 0
    """The newest record that the draft was compared with before it was to be written."""
    same: int | None = None
    """The oldest of them that says all that the draft does."""


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
    fingerprint: Fingerprint | None = None
    zone: tzinfo = UTC
    """Where its day begins."""


class Writer:
    """Writes drafts inside one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._chunk_of_section: dict[int, int] = {}
        self._meanings: dict[int, duplicates.Meaning] = {}

    def write(self, draft: Draft) -> str:
        """Return the id of the record that now says what the draft does."""
        prints = draft.fingerprint or fingerprint(draft)
        if draft.merge:
            same = self._find_same(draft, prints)
            if same is not None:
                return self._join(same, draft)
        if draft.supersedes is not None:
            self._end(draft)
        return self._insert(draft, prints)

    def _find_same(self, draft: Draft, prints: Fingerprint) -> int | None:
        if (number := self.equal(draft, prints)) is not None:
            return number
        after = prints.compared
        if prints.same is not None:
            if select(self._connection, "number", [prints.same], *_validity(draft)):
                return prints.same
            after = 0
        alike = self.alike(draft, prints, after)
        return next((number for number in alike if self.says(number, prints)), None)

    def equal(self, draft: Draft, prints: Fingerprint) -> int | None:
        """Return the record of the same text and validity, None if there is none."""
        validity, values = _validity(draft)
        row = self._connection.execute(
            f"SELECT number FROM records WHERE digest = ? AND {validity}", (prints.digest, *values)
        ).fetchone()
        return row[0] if row else None

    def alike(self, draft: Draft, prints: Fingerprint, after: int = 0) -> list[int]:
        """Return records as long valid, after `after`, that may say what a draft does, the oldest first."""
        found = self._candidates(prints.marks.by_words, after)
        found |= self._near(draft.vector, prints.marks.by_vector, after)
        return sorted(number for (number,) in select(self._connection, "number", found, *_validity(draft)))

    def says(self, number: int, prints: Fingerprint) -> bool:
        """Return whether a record says all that a draft does."""
        if number not in self._meanings:
            said = _said_by(self._connection, number)
            assert said is not None  # in the transaction that found it
            self._meanings[number] = duplicates.meaning_of(*said)
        return duplicates.says_no_more(prints.meaning, self._meanings[number])

    def _candidates(self, marks: list[int], after: int) -> set[int]:
        return {
            number
            for mark in marks
            for (number,) in self._connection.execute(
                "SELECT number FROM marks WHERE mark = ? AND number > ? ORDER BY number DESC LIMIT ?",
                (mark, after, _CANDIDATES),
            )
        }

    def _near(self, vector: np.ndarray | None, marks: list[int], after: int) -> set[int]:
        """Return the candidates whose embeddings are near enough to say the same."""
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
        cosines = unpacked(list(blobs), len(vector)) @ vector
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

    def _insert(self, draft: Draft, prints: Fingerprint) -> str:
        id = uuid.uuid4().hex
        if draft.valid_from is None and draft.supersedes is not None:
            draft = draft._replace(valid_from=draft.observed)
        chunk, place = self._place(draft)
        columns = {"id": id, "renewed": draft.observed, "chunk": chunk, "place": place}
        number = self.insert(draft, prints, columns)
        self._meanings[number] = prints.meaning
        if chunk == 0:
            self._open_chunk(draft, number)
        return id

    def insert(self, draft: Draft, prints: Fingerprint, columns: dict[str, Any]) -> int:
        """Write a record, with what a draft does not say in `columns`, and what finds it.

        Return its number.
        """
        marks = [*prints.marks.by_words, *prints.marks.by_vector]
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
            "digest": prints.digest,
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
            (number, scope_words(draft.namespace, draft.kind), prints.body),
        )
        connection.executemany(
            "INSERT OR IGNORE INTO marks VALUES (?, ?)",
            [(mark, number) for mark in marks],
        )
        if draft.vector is not None:
            connection.execute("INSERT INTO vectors VALUES (?, ?)", (number, draft.vector.tobytes()))
        return number

    def forget(self, id: str, bank: str) -> bool:
        """Delete a record and all that finds it, in the file `bank` and beside it; return if it was there."""
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
        return chunk, 0 if newest is None else newest + 1

    def _open_chunk(self, draft: Draft, number: int) -> None:
        chunk = number if draft.section is None else -number
        if draft.section is not None:
            self._chunk_of_section[draft.section] = chunk
        self._connection.execute("UPDATE records SET chunk = ? WHERE number = ?", (chunk, number))


def fingerprint(draft: Draft) -> Fingerprint:
    """Return what finds a draft; its embedding, if it has one, must be in it."""
    scope = f"{draft.namespace}\0{draft.kind}\0{draft.trust}"
    meaning = duplicates.meaning_of(draft.text, draft.vector)
    digest, marks = duplicates.digest_of(scope, draft.text), duplicates.marks_of(scope, meaning)
    body = f"{index_text(draft.text)} {day_words(draft.text, draft.observed, draft.zone)}"
    return Fingerprint(meaning, digest, marks, body)


def prepared(store: Store, draft: Draft) -> Draft:
    """Return a draft with its fingerprint, compared with what is there already.

    Before a transaction, as others must not wait for it; in one, only what was written since is compared.
    """
    prints = fingerprint(draft)
    if draft.merge:
        with store.reading() as connection:
            writer = Writer(connection)
            if writer.equal(draft, prints) is not None:
                return draft._replace(fingerprint=prints)
            (newest,) = connection.execute("SELECT MAX(number) FROM records").fetchone()
            alike = writer.alike(draft, prints)
        same = next((number for number in alike if _says(store, number, prints)), None)
        prints = prints._replace(compared=newest or 0, same=same)
    return draft._replace(fingerprint=prints)


def _says(store: Store, number: int, prints: Fingerprint) -> bool:
    """Return whether a record, if it was not forgotten since, says all that a draft does."""
    with store.reading() as connection:
        said = _said_by(connection, number)
    return said is not None and duplicates.says_no_more(prints.meaning, duplicates.meaning_of(*said))


def _validity(draft: Draft) -> tuple[str, tuple[float | None, float | None]]:
    """Return the condition in SQL that a record is as long valid as a draft, and its values."""
    return "valid_from IS ? AND valid_to IS ?", (draft.valid_from, draft.valid_to)


def _said_by(connection: sqlite3.Connection, number: int) -> tuple[str, np.ndarray | None] | None:
    """Return text and embedding of a record, None if there is none."""
    row = connection.execute(
        "SELECT text, vector FROM records LEFT JOIN vectors USING (number) WHERE number = ?", (number,)
    ).fetchone()
    if row and not isinstance(row[0], str):
        raise Unreadable(f"record {number} has no text but {row[0]!r:.80}")
    return row and (row[0], None if row[1] is None else unpacked([row[1]])[0])


def encode_provenance(provenance: dict[str, Any]) -> str:
    """Return provenance as JSON. Raises TypeError or ValueError on what JSON cannot hold."""
    try:
        written = json.dumps(provenance, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"provenance={provenance!r:.200} must be what JSON can hold: {error}") from None
    check_text("provenance", written)
    return written


def check_memorable(text: str) -> None:
    """Raise ValueError or TypeError on what cannot be remembered."""
    check_length("text", text)
    if not text.strip():
        raise ValueError(f"text={text[:80]!r}: there is nothing to remember")
    check_text("text", text)


def check_length(name: str, text: str) -> None:
    """Raise TypeError on what is no text, ValueError on one that is longer than a bank takes."""
    if not isinstance(text, str):
        raise TypeError(f"{name}={text!r}: pass a string")
    if len(text) > LONGEST_TEXT:
        raise ValueError(
            f"{name} has {len(text):,} characters, a bank takes {LONGEST_TEXT:,}; cut it, or hand it in as "
            "passages (add_document)"
        )


def check_text(name: str, text: str) -> None:
    """Raise ValueError on half a surrogate pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds {error.object[error.start]!r}, half a character; decode the text anew"
        ) from None

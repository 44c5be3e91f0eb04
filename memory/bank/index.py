"""Index of a bank: records with their entries for keywords, duplicates and embeddings, in one transaction."""

from __future__ import annotations

import sqlite3
import struct
import uuid
from typing import Any

from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.file.postings import delete_entry, entry_words, insert_entries
from scrubjay.memory.bank.file.words import index_words
from scrubjay.memory.bank.record import DRAFT_COLUMNS, Draft, Fingerprint, Version, read_trust, to_datetime
from scrubjay.memory.bank.search.quantized import quantize_complete_block
from scrubjay.memory.bank.search.segments import forget_in_segment

_MAX_PAUSE = 86400.0  # seconds without a record after which a new chunk starts


def merge(connection: sqlite3.Connection, number: int, draft: Draft) -> str:
    """Merge a draft into record `number`, and return the id of the record."""
    connection.execute(
        "INSERT INTO sayings VALUES (?, ?, ?, ?)", (number, draft.text, draft.observed, draft.provenance)
    )
    (id,) = connection.execute(
        "UPDATE records SET sayings = sayings + 1, observed = MIN(observed, ?1), renewed = MAX(renewed, ?1) "
        "WHERE number = ?2 RETURNING id",
        (draft.observed, number),
    ).fetchone()
    return id


def append(
    connection: sqlite3.Connection,
    draft: Draft,
    fingerprint: Fingerprint,
    chunk_of_section: dict[int, int],
    foreign: bool,
) -> tuple[int, str]:
    """Insert a draft as a new record at the end of its chunk; return the record's number and id.

    The validity of a superseded record ends. `chunk_of_section` holds the chunks of the document's sections
    that the transaction has written.
    """
    if draft.supersedes is not None:
        _end_validity(connection, draft, foreign)
        if draft.valid_from is None:
            draft = draft._replace(valid_from=draft.observed)
    chunk = _find_chunk(connection, draft, chunk_of_section)
    (newest,) = connection.execute("SELECT MAX(place) FROM records WHERE chunk = ?", (chunk,)).fetchone()
    id, place = uuid.uuid4().hex, 0 if newest is None else newest + 1
    columns = {"id": id, "renewed": draft.observed, "chunk": chunk, "place": place}
    number = insert(connection, draft, fingerprint, columns)
    if chunk == 0:
        chunk = number
        if draft.section is not None:
            chunk = chunk_of_section[draft.section] = -number
        connection.execute("UPDATE records SET chunk = ? WHERE number = ?", (chunk, number))
    return number, id


def replace_text(
    connection: sqlite3.Connection, id: str, draft: Draft, fingerprint: Fingerprint, bank: str, foreign: bool
) -> bool:
    """Replace the text of a record by that of a draft; return False if the text is the same.

    The record gets a new number, so that each index drops the former text as that of a deleted record. Raises
    ValueError if the draft must not replace the record.

    Args:
        connection: Connection to the bank's file, in a transaction.
        id: Id of the record.
        draft: New text with the other fields of the record.
        fingerprint: Index data of the draft.
        bank: Path of the bank's file.
        foreign: Every record counts as the text of a tool.
    """
    number, text, trust, observed, chunk, place = connection.execute(
        "SELECT number, text, trust, observed, chunk, place FROM records WHERE id = ?", (id,)
    ).fetchone()
    if text == draft.text:
        return False
    _check_replacement("id", id, draft, read_trust(trust, foreign))
    temporary_id = uuid.uuid4().hex
    connection.execute("UPDATE records SET id = ? WHERE number = ?", (temporary_id, number))
    columns = {"id": id, "renewed": draft.created, "chunk": chunk, "place": place}
    new_number = insert(connection, draft, fingerprint, columns)
    for table in ("history", "expiries"):
        connection.execute(f"UPDATE {table} SET number = ? WHERE number = ?", (new_number, number))
    connection.execute("INSERT INTO history VALUES (?, ?, ?, ?)", (new_number, text, observed, draft.created))
    connection.execute(
        "INSERT INTO history SELECT ?, text, observed, ? FROM sayings WHERE number = ? ORDER BY rowid",
        (new_number, draft.created, number),
    )
    forget(connection, temporary_id, bank)
    return True


def read_draft(connection: sqlite3.Connection, id: str) -> Draft:
    """Return a record as a draft that merges into no other. Raises KeyError if no record has the id."""
    row = connection.execute(f"SELECT {', '.join(DRAFT_COLUMNS)} FROM records WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise KeyError(f"id={id!r:.80}: no record has this id")
    return Draft(*row, merge=False)


def read_versions(connection: sqlite3.Connection, id: str) -> list[Version]:
    """Return the texts of a record, oldest first. Raises KeyError if no record has the id."""
    row = connection.execute("SELECT number, text, renewed FROM records WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise KeyError(f"id={id!r:.80}: no record has this id")
    number, *present = row
    rows = connection.execute(
        "SELECT text, observed, end_time FROM history WHERE number = ? ORDER BY rowid", (number,)
    ).fetchall()
    try:
        return [
            Version(text, to_datetime(observed), None if end is None else to_datetime(end))
            for text, observed, end in [*rows, (*present, None)]
        ]
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise UnreadableError(f"history of record {id!r:.80}: {error}") from error


def insert(
    connection: sqlite3.Connection, draft: Draft, fingerprint: Fingerprint, columns: dict[str, Any]
) -> int:
    """Insert a record and its index entries; return its number.

    `columns` has the values that are not part of a draft.
    """
    marks = [*fingerprint.marks.by_words, *fingerprint.marks.by_vector]
    row = {name: getattr(draft, name) for name in DRAFT_COLUMNS}
    row |= {"digest": fingerprint.digest, "marks": struct.pack(f"<{len(marks)}q", *marks), **columns}
    number = connection.execute(
        f"INSERT INTO records ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
    ).lastrowid
    assert number is not None
    insert_entries(connection, [(number, fingerprint.entry)])
    connection.executemany(
        "INSERT OR IGNORE INTO marks VALUES (?, ?)",
        [(mark, number) for mark in marks],
    )
    if draft.vector is not None:
        connection.execute("INSERT INTO vectors VALUES (?, ?)", (number, draft.vector.tobytes()))
        quantize_complete_block(connection, number, len(draft.vector))
    if draft.expires is not None:
        connection.execute("INSERT INTO expiries VALUES (?, ?)", (number, draft.expires))
    return number


def forget_expired(connection: sqlite3.Connection, now: float, count: int, bank: str) -> int:
    """Delete up to `count` records whose time to live has passed; return their number.

    `bank` is the path of the bank's file.
    """
    rows = connection.execute(
        "SELECT id FROM expiries JOIN records USING (number) WHERE time <= ? LIMIT ?", (now, count)
    ).fetchall()
    return sum(forget(connection, id, bank) for (id,) in rows)


def forget(connection: sqlite3.Connection, id: str, bank: str) -> bool:
    """Delete a record and its index entries, also in the index files beside the bank file `bank`.

    Return True if the record existed.
    """
    row = connection.execute(
        "SELECT number, marks, vector, text, kind, namespace, observed, provenance "
        "FROM records LEFT JOIN vectors USING (number) WHERE id = ?",
        (id,),
    ).fetchone()
    if row is None:
        return False
    number, marks, vector, text, *fields = row
    connection.executemany(
        "DELETE FROM marks WHERE mark = ? AND number = ?",
        [(mark, number) for (mark,) in struct.iter_unpack("<q", marks)],
    )
    words, length = set(), 0
    if isinstance(text, str):  # else the file is damaged, and each word of the block is searched
        words, length = entry_words(text, *fields), len(index_words(text))
    delete_entry(connection, number, words, length)
    connection.execute("DELETE FROM records WHERE number = ?", (number,))
    connection.execute("UPDATE facts SET value = value + 1 WHERE name = 'deletions'")
    forget_in_segment(connection, bank, number, vector)
    return True


def _end_validity(connection: sqlite3.Connection, draft: Draft, foreign: bool) -> None:
    """End the validity of the record that a draft supersedes; raise ValueError if it must not be replaced."""
    row = connection.execute("SELECT number, trust FROM records WHERE id = ?", (draft.supersedes,)).fetchone()
    if row is None:
        raise ValueError(f"supersedes={draft.supersedes!r}: unknown record; pass an id returned by add")
    number = row[0]
    _check_replacement("supersedes", draft.supersedes, draft, read_trust(row[1], foreign))
    end = draft.observed if draft.valid_from is None else draft.valid_from
    connection.execute(
        "UPDATE records SET valid_to = MIN(?, COALESCE(valid_to, ?)) WHERE number = ?", (end, end, number)
    )


def _check_replacement(name: str, id: str | None, draft: Draft, trust: str) -> None:
    """Raise ValueError if a draft must not replace a record of this trust."""
    if draft.trust == "tool" and trust != "tool":
        raise ValueError(
            f"{name}={id!r}: a text of trust 'tool' cannot replace a record of trust {trust!r}; let the "
            "agent or the user confirm the text"
        )


def _find_chunk(connection: sqlite3.Connection, draft: Draft, chunk_of_section: dict[int, int]) -> int:
    """Return the chunk that a draft continues; 0 for a new chunk."""
    if draft.section is not None:
        return chunk_of_section.get(draft.section, 0)
    newest = None
    for chunk, observed, renewed, has_history in connection.execute(
        "SELECT chunk, observed, renewed, number IN (SELECT number FROM history) "
        "FROM records WHERE namespace = ? AND kind = ? ORDER BY number DESC",
        (draft.namespace, draft.kind),
    ):
        # An update gives an old record a high number, but the number of its chunk stays low.
        time = observed if has_history else renewed
        if newest is None or (abs(chunk), time) > (abs(newest[0]), newest[1]):
            newest = chunk, time
        if not has_history:
            break
    # Sections of documents have negative chunk numbers; they are never continued.
    if newest is None or newest[0] <= 0 or abs(draft.observed - newest[1]) > _MAX_PAUSE:
        return 0
    return newest[0]

"""Export of a bank's records as JSON values, and import.

Ids, times, wordings, chunks and expired records are included. Embeddings are not exported: the importing bank
computes its own.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Mapping
from datetime import tzinfo
from typing import Any

from scrubjay.memory.bank.duplicates import compute_fingerprint
from scrubjay.memory.bank.file.damage import MAX_NUMBER, UnreadableError
from scrubjay.memory.bank.index import insert
from scrubjay.memory.bank.record import (
    COLUMNS,
    DRAFT_COLUMNS,
    KINDS,
    TRUSTS,
    Draft,
    check_choice,
    check_namespace,
    check_text,
    encode_provenance,
    join_namespace,
    read_json,
    read_trust,
    split_namespace,
    to_seconds,
)

_COLUMNS = (*(name for name in COLUMNS.split(", ") if name != "sayings"), "chunk", "place")
_TIMES = ("created", "observed", "renewed")
BATCH = 500
"""Records per batch of export and import."""


Cursor = tuple[int, int, str]
"""Position of a record in an export: the absolute number of its chunk, its place in the chunk, and its id.

An update changes the number of a record, but not its position.
"""
START: Cursor = (0, -1, "")
"""Position before the first record."""
_OWNED = "(:owner = '' OR (namespace >= :owner AND namespace < :owner_end))"
# Two ranges of the index on (chunk, place). Sections of documents have negative chunk numbers.
_ROWS_AFTER = f"""
    SELECT * FROM (
        SELECT * FROM (
            SELECT number, {", ".join(_COLUMNS)} FROM records
            WHERE chunk >= :chunk AND (chunk, place, id) > (:chunk, :place, :id) AND {_OWNED}
            ORDER BY chunk, place, id LIMIT :count)
        UNION ALL SELECT * FROM (
            SELECT number, {", ".join(_COLUMNS)} FROM records
            WHERE chunk < 0 AND chunk <= -:chunk AND (-chunk, place, id) > (:chunk, :place, :id)
                AND {_OWNED}
            ORDER BY chunk DESC, place, id LIMIT :count))
    ORDER BY CASE WHEN chunk < 0 THEN -chunk ELSE chunk END, place, id LIMIT :count"""


def read_rows(
    connection: sqlite3.Connection, after: Cursor, foreign: bool, owner: str = "", count: int = BATCH
) -> tuple[Cursor, list[dict[str, Any]]]:
    """Return the position of the last record that was read, and the records as JSON values.

    Up to `count` records behind the position `after` are read. If there are none, the result is `after`. The
    records of a `foreign` bank get its trust level. `owner` is a namespace from `join_namespace`; "" selects
    all records. Raises UnreadableError if a position is damaged.
    """
    chunk, place, id = after
    position = {"chunk": chunk, "place": place, "id": id, "count": count}
    owners = {"owner": owner, "owner_end": owner[:-1] + "\x20"}
    rows = connection.execute(_ROWS_AFTER, position | owners).fetchall()
    json_rows = []
    for number, *values in rows:
        row: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
        after = _read_position(row)
        row["namespace"] = list(split_namespace(row["namespace"]))
        row["trust"] = read_trust(row["trust"], foreign)
        row["provenance"] = read_json(row["provenance"])
        row["sayings"] = [
            {"text": text, "observed": observed, "provenance": read_json(provenance)}
            for text, observed, provenance in connection.execute(
                "SELECT text, observed, provenance FROM sayings WHERE number = ? ORDER BY rowid", (number,)
            )
        ]
        expiry = connection.execute("SELECT time FROM expiries WHERE number = ?", (number,)).fetchone()
        row["expires"] = None if expiry is None else expiry[0]
        row["history"] = [
            {"text": text, "observed": observed, "end": end}
            for text, observed, end in connection.execute(
                "SELECT text, observed, end_time FROM history WHERE number = ? ORDER BY rowid", (number,)
            )
        ]
        json_rows.append(row)
    return after, json_rows


def _read_position(row: Mapping[str, Any]) -> Cursor:
    chunk, place, id = (row[name] for name in ("chunk", "place", "id"))
    if not (isinstance(chunk, int) and isinstance(place, int) and isinstance(id, str)):
        raise UnreadableError(
            f"record {id!r:.80} has the chunk {chunk!r:.80} and the place {place!r:.80}; "
            "both must be integers"
        )
    return abs(chunk), place, id


class Restorer:
    """Importer of records that `read_rows` exported.

    Records that shared a chunk in the exporting bank share a chunk again, even if separate calls of `restore`
    write them.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, int] = {}

    def restore(self, connection: sqlite3.Connection, row: Mapping[str, Any], draft: Draft) -> bool:
        """Write a record unless its id exists; return True if it is new. `draft` comes from `build_draft`."""
        existing_row = connection.execute("SELECT chunk FROM records WHERE id = ?", (row["id"],)).fetchone()
        if existing_row:
            self._chunks.setdefault(row["chunk"], existing_row[0])
            return False
        chunk = self._chunks.get(row["chunk"], 0)
        columns = {
            "id": row["id"],
            "renewed": row["renewed"],
            "sayings": 1 + len(row["sayings"]),
            "chunk": chunk,
            "place": row["place"],
        }
        number = insert(connection, draft, draft.fingerprint or compute_fingerprint(draft), columns)
        if not chunk:
            # A chunk's number is that of its first record, negated for a section of a document.
            chunk = self._chunks[row["chunk"]] = number if row["chunk"] > 0 else -number
            connection.execute("UPDATE records SET chunk = ? WHERE number = ?", (chunk, number))
        connection.executemany(
            "INSERT INTO sayings VALUES (?, ?, ?, ?)",
            [
                (number, saying["text"], saying["observed"], encode_provenance(saying["provenance"]))
                for saying in row["sayings"]
            ],
        )
        connection.executemany(
            "INSERT INTO history VALUES (?, ?, ?, ?)",
            [
                (number, version["text"], version["observed"], version["end"])
                for version in row.get("history", ())
            ],
        )
        return True


def build_draft(row: Mapping[str, Any], vector: Any, zone: tzinfo, foreign: bool) -> Draft:
    """Build a draft with index data from a valid exported record. Slow: call it before a transaction.

    The trust of a `foreign` record is limited to that of a tool's text.
    """
    fields = {name: row[name] for name in DRAFT_COLUMNS}
    fields["namespace"] = join_namespace(tuple(row["namespace"]))
    fields["provenance"] = encode_provenance(row["provenance"])
    fields["trust"] = read_trust(row["trust"], foreign)
    draft = Draft(**fields, merge=False, vector=vector, zone=zone, expires=row.get("expires"))
    return draft._replace(fingerprint=compute_fingerprint(draft))


def check_row(row: Any) -> None:
    """Raise ValueError or TypeError, naming the field, unless `row` is a valid exported record."""
    if not isinstance(row, Mapping):
        raise TypeError(f"a record must be a JSON object, not {type(row).__name__}")
    missing = [name for name in (*_COLUMNS, "sayings") if name not in row]
    if missing:
        raise ValueError(f"a record lacks the fields: {', '.join(missing)}")
    for name in ("id", "text"):
        _check(row, name, _is_text)
    check_choice("kind", row["kind"], KINDS)
    check_choice("trust", row["trust"], TRUSTS)
    _check(row, "namespace", lambda value: isinstance(value, list))
    check_namespace(row["namespace"])
    _check(row, "provenance", lambda value: isinstance(value, dict))
    encode_provenance(row["provenance"])
    for name in (*_TIMES, "valid_from", "valid_to"):
        if row[name] is not None or name in _TIMES:
            _check_moment(row, name)
    _check(row, "importance", lambda value: _is_number(value) and 0 <= value <= 1)
    _check(row, "supersedes", lambda value: value is None or _is_text(value))
    _check(row, "chunk", lambda value: _is_whole(value) and 0 != abs(value) <= MAX_NUMBER)
    _check(row, "place", lambda value: _is_whole(value) and 0 <= value <= MAX_NUMBER)
    _check(row, "sayings", lambda value: isinstance(value, list))
    for saying in row["sayings"]:
        if not (isinstance(saying, dict) and saying.keys() >= {"text", "observed", "provenance"}):
            raise ValueError(f"sayings={saying!r}: each entry needs text, observed and provenance")
        _check(saying, "text", _is_text)
        _check_moment(saying, "observed")
        encode_provenance(saying["provenance"])
    if row.get("expires") is not None:  # an export of an earlier version has none
        _check_moment(row, "expires")
    history = row.get("history", [])  # an export of an earlier version has none
    _check({"history": history}, "history", lambda value: isinstance(value, list))
    for version in history:
        if not (isinstance(version, dict) and version.keys() >= {"text", "observed", "end"}):
            raise ValueError(f"history={version!r:.80}: each entry needs text, observed and end")
        _check(version, "text", _is_text)
        _check_moment(version, "observed")
        _check_moment(version, "end")


def _check(row: Mapping[str, Any], name: str, is_valid: Callable[[Any], bool]) -> None:
    if not is_valid(row[name]):
        raise ValueError(f"{name}={row[name]!r}: invalid value in an exported record")


def _check_moment(row: Mapping[str, Any], name: str) -> None:
    _check(row, name, _is_number)
    to_seconds(row[name], name)


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        check_text("a record", value)
    return isinstance(value, str) and bool(value.strip())


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Detection of damaged or manipulated bank files, which contain values that no bank writes."""

from __future__ import annotations

import contextlib
import sqlite3
import struct

import numpy as np
from jaxtyping import Float


class DamagedBankError(ValueError):
    """Error for a file that is damaged in whole or in part, or that is not a memory bank.

    Undamaged records can still be read one by one. Restore the file from a backup.
    """


class UnreadableError(ValueError):
    """Error for an invalid value in the file. `Store` turns it into a DamagedBankError with the file name."""


# Errors that values of a wrong type raise. Bugs raise them, too, so the file is checked before damage is
# reported.
_DAMAGE_ERRORS = (
    TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RecursionError, struct.error,
)  # fmt: skip
_DAMAGE_CODES = {
    sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB,
}  # fmt: skip
_NO_JSON = "malformed JSON"  # SQLite's message when a filter reads a field of the provenance
_MAX_COMPONENT = 1.1  # of a unit vector, with the rounding of half precision
MAX_NUMBER = 1 << 53
"""Largest record number, and position. A search computes with floating-point numbers, which are exact up to
this number."""
_NUMBER_CHECKS = (
    f"""SELECT EXISTS (SELECT 1 FROM records WHERE number NOT BETWEEN 1 AND {MAX_NUMBER}
        OR chunk NOT BETWEEN -{MAX_NUMBER} AND {MAX_NUMBER} OR place NOT BETWEEN 0 AND {MAX_NUMBER}
        OR sayings NOT BETWEEN 1 AND {MAX_NUMBER})""",
    f"SELECT EXISTS (SELECT 1 FROM sqlite_sequence WHERE typeof(seq) != 'integer' OR seq > {MAX_NUMBER})",
)
_SCHEMA_CHECKS = (
    *_NUMBER_CHECKS,
    "SELECT EXISTS (SELECT 1 FROM records WHERE "
    + " OR ".join(
        f"typeof({column}) NOT IN ({kinds})"
        for kinds, columns in (
            ("'text'", "id text kind namespace trust provenance"),
            ("'real'", "created observed renewed importance"),
            ("'real', 'null'", "valid_from valid_to"),
            ("'text', 'null'", "supersedes"),
            ("'integer'", "sayings chunk place"),
            ("'blob'", "digest marks"),
        )
        for column in columns.split()
    )
    + " OR length(marks) % 8)",
    """SELECT EXISTS (SELECT 1 FROM sayings
        WHERE typeof(text) != 'text' OR typeof(provenance) != 'text' OR typeof(observed) != 'real')""",
    """SELECT EXISTS (SELECT 1 FROM history
        WHERE typeof(text) != 'text' OR typeof(observed) != 'real' OR typeof(end_time) != 'real')""",
    "SELECT EXISTS (SELECT 1 FROM expiries WHERE typeof(time) != 'real')",
    "SELECT EXISTS (SELECT 1 FROM vectors WHERE typeof(vector) != 'blob' OR length(vector) % 4)",
    """SELECT COUNT(*) != 3 OR SUM(typeof(value) NOT IN ('integer', 'null')) FROM facts
        WHERE name IN ('deletions', 'dimension', 'unindexed')""",
    "SELECT SUM(typeof(value) != 'integer') FROM facts WHERE name IN ('deletions', 'unindexed')",
    """SELECT EXISTS (SELECT 1 FROM postings WHERE typeof(block) != 'integer' OR typeof(word) != 'text'
        OR typeof(field) != 'integer' OR typeof(data) != 'blob' OR length(data) % 4)""",
    """SELECT EXISTS (SELECT 1 FROM blocks WHERE typeof(records) != 'blob' OR length(records) % 4
        OR typeof(length) != 'integer')""",
    """SELECT EXISTS (SELECT 1 FROM quantized
        WHERE typeof(stamp) != 'integer' OR typeof(scopes) != 'text' OR typeof(data) != 'blob')""",
)


def is_damage_error(error: Exception, connection: sqlite3.Connection) -> bool:
    """Return True if the content of the file caused an error during reading or writing."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        if (
            code == sqlite3.SQLITE_FULL
        ):  # the disk, or the record numbers, of which SQLite counts the last one
            return _is_any(connection, _NUMBER_CHECKS)
        if code is None:  # "Could not decode to UTF-8" and errors of a closed file have no code
            return isinstance(error, sqlite3.OperationalError)
        return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF in _DAMAGE_CODES
    return isinstance(error, UnreadableError | UnicodeDecodeError) or (
        isinstance(error, _DAMAGE_ERRORS) and _is_damaged(connection)
    )


def describe_damage(error: Exception, connection: sqlite3.Connection) -> str:
    """Return the reason of an error for which `is_damage_error` is true."""
    if isinstance(error, UnicodeDecodeError):  # Python's message would describe the decoder
        return "a text is not UTF-8"
    if isinstance(error, sqlite3.Error) and str(error) == _NO_JSON:
        with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
            row = connection.execute("SELECT id FROM records WHERE NOT json_valid(provenance)").fetchone()
            if row is not None:
                return f"the provenance of record {row[0]!r:.80} is not JSON; forget(id) deletes the record"
    return str(error)


def unpack_vectors(blobs: list[bytes], dimension: int | None = None) -> Float[np.ndarray, "R D"]:
    """Return stored embeddings as an array. Raises UnreadableError if they are invalid.

    Each embedding must have `dimension` numbers. If `dimension` is None, the first embedding sets it.
    """
    size = 4 * dimension if dimension is not None else len(blobs[0]) if blobs else 4
    if any(not isinstance(blob, bytes) or len(blob) != size or not size or size % 4 for blob in blobs):
        raise UnreadableError(f"an embedding does not have dimension {size // 4}")
    vectors = np.frombuffer(bytearray().join(blobs), dtype=np.float32).reshape(len(blobs), size // 4)
    if not (np.abs(vectors) <= _MAX_COMPONENT).all():
        raise UnreadableError("an embedding is not a unit vector")
    return vectors


def read_fact(connection: sqlite3.Connection, name: str) -> int | None:
    """Return the integer value of the entry `name` in the table `facts`, None if its value is NULL.

    Raises UnreadableError if the entry is missing, or if its value is neither an integer nor NULL.
    """
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    if row is None or not isinstance(row[0], int | None):
        raise UnreadableError(f"the table `facts` has no valid entry {name!r}")
    return row[0]


def _is_damaged(connection: sqlite3.Connection) -> bool:
    try:
        if connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
            return True
        return _is_any(connection, _SCHEMA_CHECKS)
    except (sqlite3.Error, UnicodeDecodeError):
        return True


def _is_any(connection: sqlite3.Connection, statements: tuple[str, ...]) -> bool:
    """Return True if a statement returns a value other than 0, or no row."""
    return any((connection.execute(statement).fetchone() or (1,))[0] for statement in statements)

"""A bank's file that holds what no bank writes: a disk's damage, or a stranger's work."""

from __future__ import annotations

import sqlite3
import struct

import numpy as np
from jaxtyping import Float


class DamagedBankError(ValueError):
    """A bank's file, or a part of it, cannot be read, or is none of a bank.

    What is not damaged may be had still, record by record; a copy of the file is the remedy.
    """


class Unreadable(ValueError):
    """A value in the file is not what a bank writes there; the store tells in which file."""


# What Python says about values of the wrong kind; other faults do, too, so the file is looked at first.
_SIGNS = (
    TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RecursionError, struct.error,
)  # fmt: skip
_CODES = {
    sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB,
}  # fmt: skip
_LONGEST = 1.1  # that a number of a vector of length 1 may seem, at half precision, too
_WRONG = (
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
    "SELECT EXISTS (SELECT 1 FROM vectors WHERE typeof(vector) != 'blob' OR length(vector) % 4)",
    """SELECT COUNT(*) != 2 OR SUM(typeof(value) NOT IN ('integer', 'null')) FROM facts
        WHERE name IN ('deletions', 'dimension')""",
    "SELECT typeof(value) != 'integer' FROM facts WHERE name = 'deletions'",
)


def tells_of_damage(error: Exception, connection: sqlite3.Connection) -> bool:
    """Return whether what was raised while a bank's file was read or written came of what the file holds."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:  # "Could not decode to UTF-8" has none, nor has what a closed file gives
            return isinstance(error, sqlite3.OperationalError)
        return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF in _CODES
    return isinstance(error, Unreadable | UnicodeDecodeError) or (
        isinstance(error, _SIGNS) and _is_damaged(connection)
    )


def unpacked(blobs: list[bytes], dimension: int | None = None) -> Float[np.ndarray, "R D"]:
    """Return stored embeddings, of `dimension` numbers or else all equally long. Raises Unreadable."""
    size = 4 * dimension if dimension is not None else len(blobs[0]) if blobs else 4
    if any(not isinstance(blob, bytes) or len(blob) != size or not size or size % 4 for blob in blobs):
        raise Unreadable(f"an embedding has not {size // 4} numbers")
    vectors = np.frombuffer(bytearray().join(blobs), dtype=np.float32).reshape(len(blobs), size // 4)
    if not (np.abs(vectors) <= _LONGEST).all():
        raise Unreadable("an embedding is not of length 1")
    return vectors


def fact(connection: sqlite3.Connection, name: str) -> int | None:
    """Return a whole number that a bank's file notes about itself, None for none yet. Raises Unreadable."""
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    if row is None or not isinstance(row[0], int | None):
        raise Unreadable(f"it does not note its {name}")
    return row[0]


def _is_damaged(connection: sqlite3.Connection) -> bool:
    try:
        if connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
            return True
        return any((connection.execute(statement).fetchone() or (1,))[0] for statement in _WRONG)
    except (sqlite3.Error, UnicodeDecodeError):
        return True

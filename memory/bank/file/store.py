"""Database file of a memory bank: SQLite, read and written by several processes at once.

The file uses a write-ahead log: one writer at a time, and readers never wait. A committed write survives a
crash of the process (kill -9). A power failure may lose the last commits but does not corrupt the file.
Deleted content is overwritten.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scrubjay.memory.bank.file.damage import DamagedBankError, is_damage_error, unpack_vectors
from scrubjay.memory.bank.file.words import day_words

_MMAP_SIZE = 1 << 40  # bytes of the file to map into memory; SQLite's own limit may be lower
_LOG_SIZE = 1 << 26  # bytes of the write-ahead log; it is larger only while a reader needs older content
_LOCK_TIMEOUT = 30.0  # seconds to wait for another process's lock

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE records (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            text TEXT NOT NULL,
            kind TEXT NOT NULL,
            namespace TEXT NOT NULL,
            trust TEXT NOT NULL,
            provenance TEXT NOT NULL,
            created REAL NOT NULL,
            observed REAL NOT NULL,
            renewed REAL NOT NULL,
            valid_from REAL,
            valid_to REAL,
            importance REAL NOT NULL,
            supersedes TEXT,
            sayings INTEGER NOT NULL DEFAULT 1,
            chunk INTEGER NOT NULL,
            place INTEGER NOT NULL,
            digest BLOB NOT NULL,
            marks BLOB NOT NULL)""",
        "CREATE INDEX records_by_digest ON records (digest)",
        "CREATE INDEX records_by_place ON records (namespace, kind, number)",
        "CREATE INDEX records_by_time ON records (renewed, number)",
        "CREATE INDEX records_by_chunk ON records (chunk, place)",
        """CREATE TABLE sayings (
            number INTEGER NOT NULL REFERENCES records ON DELETE CASCADE,
            text TEXT NOT NULL,
            observed REAL NOT NULL,
            provenance TEXT NOT NULL)""",
        "CREATE INDEX sayings_by_record ON sayings (number)",
        "CREATE TABLE marks (mark INTEGER, number INTEGER, PRIMARY KEY (mark, number)) WITHOUT ROWID",
        (
            "CREATE TABLE vectors (number INTEGER PRIMARY KEY REFERENCES records ON DELETE CASCADE, "
            "vector BLOB "
            "NOT NULL)"
        ),
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
        "INSERT INTO facts VALUES ('deletions', 0), ('dimension', NULL)",
        """CREATE VIRTUAL TABLE words USING fts5(
            scope, body, tokenize = "porter unicode61 remove_diacritics 2")""",
        "INSERT INTO words (words, rank) VALUES ('rank', 'bm25(0.0, 1.0)')",
    ),
    ("CREATE INDEX records_by_observation ON records (observed)",),
    (
        """UPDATE words SET body = body || ' ' || (
            SELECT day_words(text, observed) FROM records WHERE number = words.rowid)""",
    ),
)


class Store:
    """SQLite connection that all threads of a process share; `foreign` if another person wrote the file.

    Raises ValueError if the path is empty or the file was written by a newer Scrubjay, DamagedBankError if
    the file is damaged or belongs to another program, and OSError if no file can exist at the path.
    """

    def __init__(self, path: str | Path, foreign: bool = False) -> None:
        self.path, self.foreign = _check_path(path), foreign
        self._lock = threading.RLock()
        self._changes_at_start = 0
        self._rollback_callbacks: set[Callable[[], None]] = set()
        self._connection = sqlite3.connect(
            self.path, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            with self._reporting_damage():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._connection.close()

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """Open a read transaction: all reads see one snapshot of the file."""
        return self._transaction("BEGIN")

    def writing(self) -> AbstractContextManager[sqlite3.Connection]:
        """Open a write transaction. It is committed after the `with` block, or rolled back on an exception.

        Only one writer at a time has a write transaction. A nested `writing` in the same thread joins the
        outer transaction.
        """
        return self._transaction("BEGIN IMMEDIATE")

    def on_rollback(self, callback: Callable[[], None]) -> None:
        """Call `callback` if the current transaction is rolled back.

        Use it to drop caches that were filled inside the transaction. If the transaction has not written
        anything so far, this method does nothing.
        """
        with self._lock:
            if self._connection.in_transaction and self._connection.total_changes > self._changes_at_start:
                self._rollback_callbacks.add(callback)

    def add_tables(self, name: str, migrations: tuple[tuple[str, ...], ...]) -> None:
        """Create or migrate additional tables; the file stores one layout version per `name`.

        Raises ValueError if the tables were written by a newer Scrubjay.
        """
        with self.reading() as connection:
            has_layouts = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'layouts'").fetchone()
            if has_layouts and _layout_version(connection, name) == len(migrations):
                return
        with self.writing() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS layouts (name TEXT PRIMARY KEY, version INTEGER NOT NULL) "
                "WITHOUT ROWID"
            )
            self._migrate(migrations, _layout_version(connection, name), f"{name} tables with layout")
            connection.execute("INSERT OR REPLACE INTO layouts VALUES (?, ?)", (name, len(migrations)))

    def erase_traces(self) -> None:
        """Truncate the write-ahead log, which still contains deleted content.

        The log is not truncated while another process reads it. Call this method after `writing`; inside a
        transaction it does nothing.
        """
        with self._lock, self._reporting_damage():
            if not self._connection.in_transaction:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._reporting_damage():
            if self._connection.in_transaction:  # of this thread, since it holds the lock
                yield self._connection
                return
            self._connection.execute(begin)
            self._changes_at_start = self._connection.total_changes
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # Some errors, such as a full disk, have rolled back already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                for callback in self._rollback_callbacks:
                    callback()
                raise
            finally:
                self._rollback_callbacks.clear()

    @contextlib.contextmanager
    def _reporting_damage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_damage_error(error, self._connection):
                raise
            # Python's message would describe the decoder.
            reason = "a text is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise DamagedBankError(
                f"{self.path!r} is damaged, or not a memory bank of Scrubjay: {reason}; restore a backup, or "
                "save the records that `export` can still read"
            ) from error

    def _prepare(self) -> None:
        connection = self._connection
        self._check_owner()
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        self._use_log()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_SIZE}").fetchone()
        connection.execute(f"PRAGMA mmap_size = {_MMAP_SIZE}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == len(_MIGRATIONS):
            return
        connection.create_function("day_words", 2, day_words, deterministic=True)
        with self.writing():
            # Read the version again: another process may have migrated the file meanwhile.
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            self._migrate(_MIGRATIONS, version, "layout")
            if version == 0 and sqlite3.sqlite_version_info >= (3, 42):
                connection.execute("INSERT INTO words (words, rank) VALUES ('secure-delete', 1)")
            connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    def _check_owner(self) -> None:
        """Raise DamagedBankError if the file is another program's database. Call it before any write."""
        with self.reading() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if tables and (version == 0 or "records" not in tables):
            raise DamagedBankError(
                f"{self.path!r} is another program's database, with tables {', '.join(sorted(tables)[:3])}; "
                "choose another file for the memory bank"
            )

    def _migrate(self, migrations: Sequence[Sequence[str]], version: int, label: str) -> None:
        if version > len(migrations):
            raise ValueError(
                f"{self.path!r} has {label} {version}, but this Scrubjay supports layouts up to "
                f"{len(migrations)}; upgrade scrubjay to open the file"
            )
        for statement in (s for migration in migrations[version:] for s in migration):
            self._connection.execute(statement)

    def _use_log(self) -> None:
        """Switch to the write-ahead log.

        Retry while the file is locked, since SQLite's timeout does not apply to this switch.
        """
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _check_path(path: str | Path) -> str:
    """Return the path as a string. Raises TypeError, ValueError or OSError if no file can exist there."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f'path={path!r}: pass a file path, or ":memory:"')
    if not str(path):  # SQLite would open a temporary file
        raise ValueError(
            "path='': name a file, such as facts.db, or pass ':memory:' for a bank without a file"
        )
    if Path(path).is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it, such as facts.db")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"folder {str(Path(path).parent)!r} does not exist; create it first")
    return str(path)


def select(
    connection: sqlite3.Connection,
    columns: str,
    numbers: Iterable[int],
    condition: str = "1",
    values: Sequence[object] = (),
    table: str = "records",
) -> list[tuple]:
    """Return columns of the records with these numbers that meet a condition, in any order.

    Args:
        connection: Connection to the bank's file.
        columns: SQL expression of the columns to return.
        numbers: Record numbers.
        condition: SQL condition on the records.
        values: Values of the condition's placeholders.
        table: Table to read; it has a column `number`.
    """
    numbers = list(numbers)
    rows: list[tuple] = []
    for first in range(0, len(numbers), 500):  # older SQLite versions accept at most 999 values
        some = numbers[first : first + 500]
        marks = ", ".join("?" * len(some))
        rows += connection.execute(
            f"SELECT {columns} FROM {table} WHERE number IN ({marks}) AND {condition}", [*some, *values]
        )
    return rows


def read_vectors(
    connection: sqlite3.Connection, numbers: Iterable[int], dimension: int
) -> tuple[list[int], Float[np.ndarray, "R D"]]:
    """Return the record numbers among `numbers` that have an embedding, and these embeddings."""
    rows = select(connection, "number, vector", numbers, table="vectors")
    return [number for number, _ in rows], unpack_vectors([blob for _, blob in rows], dimension)


def _layout_version(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT version FROM layouts WHERE name = ?", (name,)).fetchone()
    return row[0] if row else 0

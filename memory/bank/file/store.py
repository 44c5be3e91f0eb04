"""The file of a memory bank: an SQLite database that several processes may read and write at once.

Write-ahead log, one writer at a time, readers never wait. What a commit has acknowledged survives the death
of the process (kill -9); a power cut may take the last commits, never the file. Deleted content is
overwritten.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from scrubjay.memory.bank.file.damage import DamagedBankError, tells_of_damage
from scrubjay.memory.bank.file.words import day_words

_MAPPED = 1 << 40  # bytes of the file read where they lie in the system's cache, all if SQLite may
_PATIENCE = 30.0  # seconds to wait for another process's write

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
    """A connection for all threads of a process.

    Raises ValueError on no name and on a file of a newer Scrubjay, DamagedBankError where a file is damaged
    or of another program, and OSError where there can be no file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _checked(path)
        self._lock = threading.RLock()
        self._changes = 0
        self._if_undone: set[Callable[[], None]] = set()
        self._connection = sqlite3.connect(
            self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            with self._telling_damage():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for reads that see one state of the file."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection, the only writer of the file; all is written at the end, or nothing.

        Inside another `writing` of the same thread it is part of that one.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def if_undone(self, act: Callable[[], None]) -> None:
        """Call `act`, once, if this thread's transaction has changed something and is rolled back.

        For what keeps in memory what it read there.
        """
        with self._lock:
            if self._connection.in_transaction and self._connection.total_changes > self._changes:
                self._if_undone.add(act)

    def add_tables(self, name: str, migrations: tuple[tuple[str, ...], ...]) -> None:
        """Bring tables kept beside the records up to date; each `name` counts migrations of its own.

        Raises ValueError on tables of a newer Scrubjay.
        """
        with self.reading() as connection:
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'layouts'").fetchone()
            if known and _layout(connection, name) == len(migrations):
                return
        with self.writing() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS layouts (name TEXT PRIMARY KEY, version INTEGER NOT NULL) "
                "WITHOUT ROWID"
            )
            self._migrate(migrations, _layout(connection, name), f"{name} of layout")
            connection.execute("INSERT OR REPLACE INTO layouts VALUES (?, ?)", (name, len(migrations)))

    def erase_traces(self) -> None:
        """Empty the write-ahead log, which still holds what was deleted, unless another process reads it now.

        Inside `writing` it does nothing: do it after.
        """
        with self._lock, self._telling_damage():
            if not self._connection.in_transaction:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._telling_damage():
            if self._connection.in_transaction:  # this thread's own, as it holds the lock
                yield self._connection
                return
            self._connection.execute(begin)
            self._changes = self._connection.total_changes
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if (
                    self._connection.in_transaction
                ):  # some errors, a full disk's for one, have ended it already
                    self._connection.execute("ROLLBACK")
                for act in self._if_undone:
                    act()
                raise
            finally:
                self._if_undone.clear()

    @contextlib.contextmanager
    def _telling_damage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not tells_of_damage(error, self._connection):
                raise
            # Python's own words for such a text are about a decoder.
            why = "a text is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise DamagedBankError(
                f"{self.path!r} is damaged, or no memory of Scrubjay: {why}; take a copy of it, or what "
                "`export` still reads of it"
            ) from error

    def _prepare(self) -> None:
        connection = self._connection
        self._check_owner()
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        self._use_log()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA mmap_size = {_MAPPED}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == len(_MIGRATIONS):
            return
        connection.create_function("day_words", 2, day_words, deterministic=True)
        with self.writing():
            # Again: another process may have migrated.
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            self._migrate(_MIGRATIONS, version, "layout")
            if version == 0 and sqlite3.sqlite_version_info >= (3, 42):
                connection.execute("INSERT INTO words (words, rank) VALUES ('secure-delete', 1)")
            connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    def _check_owner(self) -> None:
        """Raise DamagedBankError on another program's database, before anything is written there."""
        with self.reading() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if tables and (version == 0 or "records" not in tables):
            raise DamagedBankError(
                f"{self.path!r} is another program's database, with {', '.join(sorted(tables)[:3])}; give "
                "the memory a file of its own"
            )

    def _migrate(self, migrations: Sequence[Sequence[str]], version: int, what: str) -> None:
        if version > len(migrations):
            raise ValueError(
                f"{self.path!r} has {what} {version}, this Scrubjay knows up to {len(migrations)}; "
                "upgrade scrubjay to open it"
            )
        for statement in (s for migration in migrations[version:] for s in migration):
            self._connection.execute(statement)

    def _use_log(self) -> None:
        """Switch to the write-ahead log; SQLite does not wait here for others who do the same, so we do."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _checked(path: str | Path) -> str:
    """Return where the file is or will be. Raises TypeError, ValueError or OSError where none can be."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f'path={path!r}: pass that of a file, or ":memory:"')
    if not str(path):  # which SQLite takes for a file that is gone when it is closed
        raise ValueError("path='': name a file, such as facts.db, or pass ':memory:' to keep nothing")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it, such as facts.db")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(Path(path).parent)!r} for a memory; make it first")
    return str(path)


def select(
    connection: sqlite3.Connection,
    columns: str,
    numbers: Iterable[int],
    condition: str = "1",
    values: Sequence[object] = (),
    key: str = "number",
) -> list[tuple]:
    """Return columns of the records that meet the condition, their `key` among `numbers`, in no order.

    Args:
        connection: To the bank's file.
        columns: What to return, in SQL.
        numbers: Which records, by `key`.
        condition: What they must meet, in SQL.
        values: Of the condition's question marks.
        key: The column that `numbers` are of.
    """
    numbers = list(numbers)
    rows: list[tuple] = []
    for first in range(0, len(numbers), 500):  # older SQLites take at most 999 values
        some = numbers[first : first + 500]
        marks = ", ".join("?" * len(some))
        rows += connection.execute(
            f"SELECT {columns} FROM records WHERE {key} IN ({marks}) AND {condition}", [*some, *values]
        )
    return rows


def _layout(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT version FROM layouts WHERE name = ?", (name,)).fetchone()
    return row[0] if row else 0

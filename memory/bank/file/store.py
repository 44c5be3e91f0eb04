"""Database file of a memory bank: SQLite, read and written by several processes at once.

The file uses a write-ahead log: one writer at a time, and readers never wait. A committed write survives a
crash of the process (kill -9). A power failure may lose the last commits but does not corrupt the file.
Deleted content is overwritten.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scrubjay.memory.bank.file.damage import (
    DamagedBankError,
    UnreadableError,
    describe_damage,
    is_damage_error,
    unpack_vectors,
)
from scrubjay.memory.bank.file.schema import (
    LAYOUTS,
    LAYOUTS_TABLE,
    MIGRATIONS,
    Migrations,
    check_version,
    read_version,
)

_MMAP_SIZE = 1 << 40  # bytes of the file to map into memory; SQLite's own limit may be lower
_LOG_SIZE = 1 << 26  # bytes of the write-ahead log; it is larger only while a reader needs older content
_CACHE_SIZE = 16 << 10  # KiB of an untrusted file that a connection holds in memory
LOCK_TIMEOUT = 30.0
"""Seconds to wait for another process's lock."""
_MAX_SQL_LENGTH = 100_000
"""Bytes of a statement, also of one in the schema of a file. Ours have fewer than 10,000."""
_MAX_FOREIGN_VALUE = 16 << 20
"""Bytes of a value in an untrusted file. JSON takes up to 20 times its bytes in memory."""
_MIN_SIZE = 512  # bytes of an SQLite file: one page of the smallest size
_SIDE_FILES = ("-journal", "-wal", "-shm")  # SQLite writes and truncates them


class Store:
    """SQLite connection that all threads of a process share; `foreign` if another person wrote the file.

    The schema of the file is compared with that of a bank before SQLite could run code in the file.

    Args:
        path: SQLite file, or ":memory:".
        foreign: The file is untrusted. Check all of it at opening, limit the length of its values, do not
            map it into memory, and refuse a symbolic link. The time of opening grows with the size of the
            file.

    Raises ValueError if the path is empty or the file was written by a newer Scrubjay, DamagedBankError if
    the file is damaged or not a bank, and OSError if no file can exist at the path.
    """

    def __init__(self, path: str | Path, foreign: bool = False) -> None:
        self.path, self.foreign = _check_path(path, foreign), foreign
        self._lock = threading.RLock()
        self._changes_at_start = 0
        self._rollback_callbacks: set[Callable[[], None]] = set()
        self._connection = sqlite3.connect(
            self.path, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            with self._reporting_damage():
                self._prepare()
        except BaseException as error:
            self._connection.close()
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:
                raise OSError(f"{self.path!r} cannot be opened as a memory bank: {error}") from error
            raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._connection.close()

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """Open a read transaction: all reads see one snapshot of the file."""
        return self._transaction("BEGIN")

    def writing(self, timeout: float = LOCK_TIMEOUT) -> AbstractContextManager[sqlite3.Connection]:
        """Open a write transaction. It is committed after the `with` block, or rolled back on an exception.

        Only one writer at a time has a write transaction. A nested `writing` in the same thread joins the
        outer transaction. Raises sqlite3.OperationalError if another process writes for longer than `timeout`
        seconds.
        """
        return self._transaction("BEGIN IMMEDIATE", timeout)

    def on_rollback(self, callback: Callable[[], None]) -> None:
        """Call `callback` if the current transaction is rolled back.

        Use it to drop caches that were filled inside the transaction. If the transaction has not written
        anything so far, this method does nothing.
        """
        with self._lock:
            if self._connection.in_transaction and self._connection.total_changes > self._changes_at_start:
                self._rollback_callbacks.add(callback)

    def add_tables(self, name: str) -> None:
        """Create or migrate the additional tables `LAYOUTS[name]`; the file stores their layout version.

        Raises ValueError if the tables were written by a newer Scrubjay.
        """
        migrations = LAYOUTS[name]
        with self.reading() as connection:
            if _layout_version(connection, name) == len(migrations):
                return
        with self.writing() as connection:
            version = _layout_version(connection, name)
            if version is None:
                connection.execute(LAYOUTS_TABLE)
            check_version(self.path, version or 0, migrations, f"{name} tables with layout")
            self._migrate(migrations, version or 0)
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
    def _transaction(self, begin: str, timeout: float = LOCK_TIMEOUT) -> Iterator[sqlite3.Connection]:
        with self._lock, self._reporting_damage():
            if self._connection.in_transaction:  # of this thread, since it holds the lock
                yield self._connection
                return
            if timeout != LOCK_TIMEOUT:
                self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * timeout)}")
            try:
                self._connection.execute(begin)
            finally:
                if timeout != LOCK_TIMEOUT:
                    self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * LOCK_TIMEOUT)}")
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
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_TOOBIG and self.foreign:
                raise DamagedBankError(
                    f"{self.path!r} has, or would get, a value of more than {_MAX_FOREIGN_VALUE:,} bytes, "
                    "the limit of an untrusted bank; copy its other records with `export` and `restore`"
                ) from None
            if not is_damage_error(error, self._connection):
                raise
            reason = describe_damage(error, self._connection)
            raise DamagedBankError(
                f"{self.path!r} is damaged, or not a memory bank of Scrubjay: {reason}; restore a backup, or "
                "save the records that `export` can still read"
            ) from error

    def _prepare(self) -> None:
        connection = self._connection
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MAX_SQL_LENGTH)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("BEGIN")  # one snapshot, while another process may migrate the file
        version = read_version(connection, self.path).bank
        connection.execute("COMMIT")
        if self.foreign:
            self._check_content()
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        self._use_log()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_SIZE}").fetchone()
        # A process ends with SIGBUS when a file that it has mapped is truncated.
        connection.execute(
            f"PRAGMA cache_size = -{_CACHE_SIZE}" if self.foreign else f"PRAGMA mmap_size = {_MMAP_SIZE}"
        )
        if version == len(MIGRATIONS):
            return
        with self.writing():
            # Read the version again: another process may have migrated the file meanwhile.
            version = read_version(connection, self.path).bank
            self._migrate(MIGRATIONS, version)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _check_content(self) -> None:
        """Limit the values of an untrusted file, and raise DamagedBankError unless its pages are intact.

        Pages that refer to each other in a circle would make a search endless.
        """
        connection = self._connection
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_FOREIGN_VALUE)
        connection.execute("PRAGMA cell_size_check = ON")
        (problem,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if problem != "ok":
            raise UnreadableError(problem)

    def _migrate(self, migrations: Migrations, version: int) -> None:
        for statement in (s for migration in migrations[version:] for s in migration):
            self._connection.execute(statement)

    def _use_log(self) -> None:
        """Switch to the write-ahead log.

        Retry while the file is locked, since SQLite's timeout does not apply to this switch.
        """
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _check_path(path: str | Path, foreign: bool) -> str:
    """Return the path as a string.

    Raises TypeError, ValueError or OSError if no file can exist there, and DamagedBankError if the file
    there, or one that SQLite keeps beside it, is not an ordinary file.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f'path={path!r}: pass a file path, or ":memory:"')
    name = os.fspath(path)
    if not name:  # SQLite would open a temporary file
        raise ValueError(
            "path='': name a file, such as facts.db, or pass ':memory:' for a bank without a file"
        )
    if name == ":memory:":
        return name
    file = name
    if os.path.islink(name):
        if foreign:
            raise DamagedBankError(f"{name!r} is a symbolic link; name the file itself if you trust it")
        file = os.path.realpath(name)  # SQLite keeps its other files there
    try:
        status = os.stat(file)
    except FileNotFoundError:
        folder = os.path.dirname(file) or "."
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"folder {folder!r} does not exist; create it first") from None
    else:
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(f"{name!r} is a folder; name a file in it, such as facts.db")
        _check_ordinary(name, status)
        if 0 < status.st_size < _MIN_SIZE:
            raise DamagedBankError(
                f"{name!r} has {status.st_size} bytes, fewer than any bank; restore a backup, or choose "
                "another file for the memory bank"
            )
    for suffix in _SIDE_FILES:
        try:
            status = os.lstat(file + suffix)
        except FileNotFoundError:
            continue
        _check_ordinary(file + suffix, status)
    return name


def _check_ordinary(name: str, status: os.stat_result) -> None:
    """Raise DamagedBankError unless a file is an ordinary file with one name.

    Writing to a file with several names would change the other one, too, such as a file of yours.
    """
    if not stat.S_ISREG(status.st_mode):
        raise DamagedBankError(f"{name!r} is not an ordinary file; remove it, or choose another path")
    if status.st_nlink > 1:
        raise DamagedBankError(
            f"{name!r} has {status.st_nlink} names (hard links), and a write would change the file of each "
            "name; open a copy of the file"
        )


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


def has_tables(connection: sqlite3.Connection, name: str) -> bool:
    """Return True if the file has the additional tables `LAYOUTS[name]`."""
    return bool(_layout_version(connection, name))


def _layout_version(connection: sqlite3.Connection, name: str) -> int | None:
    """Return the version of a layout, 0 if the file lacks it; None if the file has no table `layouts`."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'layouts'").fetchone():
        return None
    row = connection.execute("SELECT version FROM layouts WHERE name = ?", (name,)).fetchone()
    return row[0] if row else 0

"""Tables of a bank's file, and the comparison of a file's schema with them.

SQLite runs code that a file contains: triggers, views, generated columns and expressions of indexes. The
schema is therefore compared with ours before any statement that could run such code.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from scrubjay.memory.bank.file.damage import DamagedBankError

Migrations = tuple[tuple[str, ...], ...]

_CREATE_WORDS = (
    """CREATE VIRTUAL TABLE words USING fts5(
        scope, body, tokenize = "porter unicode61 remove_diacritics 2")""",
    "INSERT INTO words (words, rank) VALUES ('rank', 'bm25(0.0, 1.0)')",
)
# SQLite cannot drop an index that it cannot read, so its tables become those of an empty index.
_DROP_WORDS = (
    "DELETE FROM words_data",
    "INSERT INTO words_data VALUES (1, x''), (10, x'00000002000000')",
    "DELETE FROM words_config",
    "INSERT INTO words_config VALUES ('version', 4)",
    "DROP TABLE words",
)
MIGRATIONS: Migrations = (
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
        """CREATE TABLE vectors (
            number INTEGER PRIMARY KEY REFERENCES records ON DELETE CASCADE, vector BLOB NOT NULL)""",
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
        "INSERT INTO facts VALUES ('deletions', 0), ('dimension', NULL)",
        *_CREATE_WORDS,
    ),
    ("CREATE INDEX records_by_observation ON records (observed)",),
    (),  # days became words of the index, which the next layout replaces
    (
        *_DROP_WORDS,
        """CREATE TABLE postings (
            block INTEGER NOT NULL,
            word TEXT NOT NULL,
            field INTEGER NOT NULL,
            data BLOB NOT NULL,
            PRIMARY KEY (block, word, field)) WITHOUT ROWID""",
        """CREATE TABLE blocks (
            block INTEGER PRIMARY KEY, records BLOB NOT NULL, length INTEGER NOT NULL)""",
        # The first search indexes the words, since this takes minutes for a million records.
        "INSERT INTO facts SELECT 'unindexed', COALESCE(MAX(number), 0) FROM records",
    ),
    (
        """CREATE TABLE history (
            number INTEGER NOT NULL REFERENCES records ON DELETE CASCADE,
            text TEXT NOT NULL,
            observed REAL NOT NULL,
            end_time REAL NOT NULL)""",
        "CREATE INDEX history_by_record ON history (number)",
    ),
    (
        """CREATE TABLE expiries (
            number INTEGER PRIMARY KEY REFERENCES records ON DELETE CASCADE, time REAL NOT NULL)""",
        "CREATE INDEX expiries_by_time ON expiries (time)",
    ),
    (
        # The first search quantizes the embeddings, since this takes seconds for a million records.
        """CREATE TABLE quantized (
            block INTEGER PRIMARY KEY, stamp INTEGER NOT NULL, scopes TEXT NOT NULL, data BLOB NOT NULL)""",
        """CREATE TRIGGER quantized_after_insert AFTER INSERT ON vectors BEGIN
            DELETE FROM quantized WHERE block = NEW.number / 512; END""",
        """CREATE TRIGGER quantized_after_update AFTER UPDATE ON vectors BEGIN
            DELETE FROM quantized WHERE block IN (OLD.number / 512, NEW.number / 512); END""",
        """CREATE TRIGGER quantized_after_delete AFTER DELETE ON vectors BEGIN
            DELETE FROM quantized WHERE block = OLD.number / 512; END""",
    ),
)
"""Layouts of the bank's own tables; each entry turns one layout into the next."""

LAYOUTS: dict[str, Migrations] = {
    "checkpoints": (
        (
            """CREATE TABLE checkpoints (
                number INTEGER PRIMARY KEY,
                thread TEXT NOT NULL,
                namespace TEXT NOT NULL,
                id TEXT NOT NULL,
                parent TEXT,
                run TEXT,
                type TEXT NOT NULL,
                checkpoint BLOB NOT NULL,
                metadata_type TEXT NOT NULL,
                metadata BLOB NOT NULL,
                channels TEXT NOT NULL,
                UNIQUE (thread, namespace, id))""",
            "CREATE INDEX checkpoints_by_run ON checkpoints (run) WHERE run IS NOT NULL",
            """CREATE TABLE channel_values (
                thread TEXT NOT NULL,
                number INTEGER NOT NULL,
                type TEXT NOT NULL,
                value BLOB NOT NULL,
                UNIQUE (thread, number))""",
            """CREATE TABLE list_items (
                thread TEXT NOT NULL,
                number INTEGER NOT NULL,
                type TEXT NOT NULL,
                value BLOB NOT NULL,
                UNIQUE (thread, number))""",
            """CREATE TABLE writes (
                thread TEXT NOT NULL,
                namespace TEXT NOT NULL,
                checkpoint TEXT NOT NULL,
                task TEXT NOT NULL,
                place INTEGER NOT NULL,
                path TEXT NOT NULL,
                channel TEXT NOT NULL,
                type TEXT NOT NULL,
                value BLOB NOT NULL,
                UNIQUE (thread, namespace, checkpoint, task, place))""",
        ),
    ),
    "consolidation": (
        (
            """CREATE TABLE decisions (
                number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, moment REAL NOT NULL,
                considered TEXT NOT NULL, steps TEXT NOT NULL, refused TEXT NOT NULL, undone REAL)""",
        ),
    ),
    "items": (
        (
            """CREATE TABLE items (
                number INTEGER PRIMARY KEY AUTOINCREMENT,
                namespace TEXT NOT NULL,
                key TEXT NOT NULL,
                value TEXT NOT NULL,
                created REAL NOT NULL,
                updated REAL NOT NULL,
                ttl REAL,
                expires REAL,
                records TEXT NOT NULL,
                UNIQUE (namespace, key))""",
            "CREATE INDEX items_by_expiry ON items (expires) WHERE expires IS NOT NULL",
        ),
    ),
    "messages": (
        (
            """CREATE TABLE messages (
                number INTEGER PRIMARY KEY AUTOINCREMENT,
                namespace TEXT NOT NULL,
                thread TEXT NOT NULL,
                type TEXT NOT NULL,
                message TEXT NOT NULL,
                record TEXT)""",
            "CREATE INDEX messages_by_thread ON messages (namespace, thread, number)",
        ),
    ),
    "surprise": (
        (
            """CREATE TABLE surprise (
                last INTEGER PRIMARY KEY, count INTEGER NOT NULL, mean REAL NOT NULL, spread REAL NOT NULL,
                state BLOB NOT NULL)""",
            # Deleting a record deletes the state that was learned from it.
            "CREATE TRIGGER forget_surprise AFTER DELETE ON vectors BEGIN DELETE FROM surprise; END",
        ),
    ),
}
"""Tables that other parts of Scrubjay add to a file, by the name of their layout."""

LAYOUTS_TABLE = "CREATE TABLE layouts (name TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID"
_WORDS_TABLES = (
    "CREATE TABLE 'words_data'(id INTEGER PRIMARY KEY, block BLOB)",
    "CREATE TABLE 'words_idx'(segid, term, pgno, PRIMARY KEY(segid, term)) WITHOUT ROWID",
    "CREATE TABLE 'words_content'(id INTEGER PRIMARY KEY, c0, c1)",
    "CREATE TABLE 'words_docsize'(id INTEGER PRIMARY KEY, sz BLOB)",
    "CREATE TABLE 'words_config'(k PRIMARY KEY, v) WITHOUT ROWID",
)  # FTS5 creates them
_OPTIONAL_TABLES = (
    "CREATE TABLE sqlite_sequence(name,seq)",
    "CREATE TABLE sqlite_stat1(tbl,idx,stat)",
    "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)",
)  # of AUTOINCREMENT and ANALYZE
_CREATE = re.compile(r"CREATE (?:VIRTUAL )?(TABLE|INDEX|TRIGGER) '?(\w+)'?(?:.*? ON (\w+))?", re.DOTALL)
_SPACE = re.compile(r"[ \t\n\f\r]+")  # to SQLite, other white space is part of a name
_MARK = re.compile(r" ?([(),]) ?")
_MAX_STEPS = 100_000
"""Steps of SQLite's virtual machine to read a schema. Ours takes about 1,000; a schema of a million tables
would take seconds."""


Row = tuple[str, str, str, str | None]
"""Type, name, table and CREATE statement of an object in a schema, as in `sqlite_master`."""


class FileVersion(NamedTuple):
    """Versions of the layouts in a file."""

    bank: int
    """Layout of the bank's own tables; 0 for a new file."""
    layouts: dict[str, int]
    """Versions of the other layouts in the file, by name."""


def read_version(connection: sqlite3.Connection, path: str) -> FileVersion:
    """Return the versions of a file's layouts, after a comparison of the file's schema with ours.

    Call this function before any other statement. Raises DamagedBankError if the schema is not that of a
    bank, and ValueError if a newer Scrubjay wrote the file.
    """
    connection.set_progress_handler(lambda: 1, _MAX_STEPS)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        table = connection.execute("SELECT type, name, tbl_name, sql, rootpage FROM sqlite_master").fetchall()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
            raise
        raise _refuse(path, f"its schema takes more than {_MAX_STEPS:,} steps to read") from None
    finally:
        connection.set_progress_handler(None, 0)
    if version == application == 0 and not table:
        return FileVersion(0, {})
    rows: tuple[Row, ...] = tuple([row[:4] for row in table])
    if not 0 < version <= len(MIGRATIONS) or application != 0:
        _check_owner(path, version, rows)
        check_version(path, version, MIGRATIONS, "layout")
        raise _refuse(path, f"it has user_version={version} and application_id={application}")
    roots = [row[4] for row in table if row[4] != 0]
    if len({*roots, 1}) <= len(roots):
        raise _refuse(path, "two of its tables share a page")
    layouts: tuple[tuple[str, int], ...] = ()
    if _ROW_OF_LAYOUTS in [_normalize(row) for row in rows if row[1] == "layouts"]:
        layouts = tuple(connection.execute("SELECT name, version FROM layouts LIMIT ?", (len(LAYOUTS) + 1,)))
    for name, layout in layouts:
        if name not in LAYOUTS or not isinstance(layout, int) or layout < 1:
            raise _refuse(path, f"its table `layouts` has the entry {name!r:.80}, {layout!r:.80}")
        check_version(path, layout, LAYOUTS[name], f"{name} tables with layout")
    if difference := _find_difference(rows, version, layouts):
        _check_owner(path, version, rows)
        raise _refuse(path, difference)
    return FileVersion(version, dict(layouts))


def check_version(path: str, version: int, migrations: Migrations, label: str) -> None:
    """Raise ValueError if a newer Scrubjay wrote the tables."""
    if version > len(migrations):
        raise ValueError(
            f"{path!r} has {label} {version}, but this Scrubjay supports layouts up to "
            f"{len(migrations)}; upgrade scrubjay to open the file"
        )


def _check_owner(path: str, version: int, rows: tuple[Row, ...]) -> None:
    """Raise DamagedBankError if the file is another program's database."""
    names = sorted(str(name) for _, name, _, _ in rows)
    if names and (version == 0 or "records" not in names):
        raise DamagedBankError(
            f"{path!r} is another program's database, with tables {', '.join(names[:3])}; "
            "choose another file for the memory bank"
        )


def _refuse(path: str, reason: str) -> DamagedBankError:
    return DamagedBankError(
        f"{path!r} is not as Scrubjay writes a bank: {reason}; restore a backup, or undo the change with "
        "the program that made it"
    )


@functools.lru_cache(maxsize=16)
def _find_difference(rows: tuple[Row, ...], version: int, layouts: tuple[tuple[str, int], ...]) -> str | None:
    """Return a phrase about the first difference between a schema and ours; None if there is none."""
    migrations = [*MIGRATIONS[:version], *(m for name, layout in layouts for m in LAYOUTS[name][:layout])]
    necessary: set[Row] = set()
    for statement in (s for statements in migrations for s in statements):
        if statement == _DROP_WORDS[-1]:
            necessary = {row for row in necessary if row[1] not in _WORDS_NAMES}
        necessary.update(_parse(statement))
    optional = {row for statement in (LAYOUTS_TABLE, *_OPTIONAL_TABLES) for row in _parse(statement)}
    names = {row[:2] for row in necessary | optional}
    normalized_rows = [_normalize(row) for row in rows]
    for row in normalized_rows:
        if row not in necessary | optional:
            what = f"the {row[0]} {row[1]!r:.80}"
            if row[:2] in names:
                return f"{what} has another definition than in a bank: {row[3]!r:.200}"
            return f"{what} is not part of a bank"
    for row in sorted(necessary.difference(normalized_rows), key=str):
        return f"it lacks the {row[0]} {row[1]!r}"
    return None


def _normalize(row: Row) -> Row:
    # Releases differ in white space. Our statements have no comments, so that white space does not matter.
    type, name, table, sql = row
    return type, name, table, _MARK.sub(r"\1", _SPACE.sub(" ", sql)) if isinstance(sql, str) else sql


def _parse(statement: str) -> Iterator[Row]:
    """Yield the rows of `sqlite_master` that a statement causes."""
    if statement == _CREATE_WORDS[0]:
        for table in _WORDS_TABLES:
            yield from _parse(table)
    if match := _CREATE.match(statement):
        type, name, table = match[1].lower(), match[2], match[3] or match[2]
        yield _normalize((type, name, name if type == "table" else table, statement))
        if type == "table" and "UNIQUE" in statement:
            yield "index", f"sqlite_autoindex_{name}_1", name, None


_WORDS_NAMES = {row[1] for row in _parse(_CREATE_WORDS[0])}
(_ROW_OF_LAYOUTS,) = _parse(LAYOUTS_TABLE)

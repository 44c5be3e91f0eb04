"""Mutators of SQLite files: pages, rows, schema, pragmas, and msgpack values in rows."""

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack

from .values import NUMBERS, TEXTS, any_value

_HEADER = (
    *(
        (16, ">H"),
        (18, ">B"),
        (19, ">B"),
        (20, ">B"),
        (21, ">B"),
        (24, ">I"),
        (28, ">I"),
        (32, ">I"),
        (36, ">I"),
    ),
    *(
        (40, ">I"),
        (44, ">I"),
        (48, ">I"),
        (52, ">I"),
        (56, ">I"),
        (60, ">I"),
        (64, ">I"),
        (68, ">I"),
        (96, ">I"),
    ),
)
"""Offset and format of the fields of a database header."""
_STATEMENTS = (
    "CREATE TRIGGER t1 AFTER UPDATE ON {table} BEGIN DELETE FROM {table}; END",
    "CREATE TRIGGER t2 BEFORE INSERT ON {table} BEGIN SELECT RAISE(IGNORE); END",
    "CREATE TRIGGER t3 AFTER INSERT ON {table} BEGIN UPDATE {table} SET {column} = zeroblob(9000000); END",
    "CREATE TRIGGER t4 AFTER DELETE ON {table} BEGIN INSERT INTO {table} ({column}) VALUES (1); END",
    "CREATE TRIGGER t5 AFTER INSERT ON {table} BEGIN INSERT INTO {table} SELECT * FROM {table}; END",
    "CREATE VIEW v1 AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
    "CREATE INDEX i1 ON {table} (length({column}))",
    "CREATE UNIQUE INDEX i2 ON {table} (substr({column}, 1, 1) || random()) WHERE 1",
    "ALTER TABLE {table} ADD COLUMN more INT GENERATED ALWAYS AS (length(zeroblob(50000000))) VIRTUAL",
    "ALTER TABLE {table} ADD COLUMN more INT DEFAULT 1 NOT NULL CHECK (more > 0)",
    "ALTER TABLE {table} RENAME TO other",
    "ALTER TABLE {table} RENAME COLUMN {column} TO other",
    "DROP TABLE {table}",
    "CREATE TABLE extra (x)",
    "CREATE VIRTUAL TABLE extra USING fts5 (x, content='{table}')",
    "CREATE VIRTUAL TABLE extra USING rtree (a, b, c)",
    "DELETE FROM {table}",
    "DELETE FROM {table} WHERE rowid % 2",
    "INSERT INTO {table} SELECT * FROM {table} LIMIT 1",
    "UPDATE {table} SET rowid = rowid + 9223372036854775800",
    "UPDATE {table} SET rowid = -rowid",
    "UPDATE {table} SET {column} = NULL",
    "UPDATE sqlite_sequence SET seq = 9223372036854775807",
    "DELETE FROM sqlite_sequence",
    "PRAGMA user_version = 2147483647",
    "PRAGMA user_version = -7",
    "PRAGMA user_version = 0",
    "PRAGMA user_version = 1",
    "PRAGMA application_id = 7",
    "PRAGMA journal_mode = delete",
    "PRAGMA auto_vacuum = 1\nVACUUM",
    "PRAGMA page_size = 512\nPRAGMA journal_mode = delete\nVACUUM",
    "UPDATE sqlite_master SET sql = replace(sql, 'TEXT', 'INT') WHERE name = '{table}'",
    "UPDATE sqlite_master SET sql = sql || ' ' WHERE name = '{table}'",
    "UPDATE sqlite_master SET sql = 'CREATE TABLE {table} (x)' WHERE name = '{table}'",
    "UPDATE sqlite_master SET rootpage = 1 WHERE name = '{table}'",
    "UPDATE sqlite_master SET rootpage = 99999 WHERE name = '{table}'",
    "UPDATE sqlite_master SET rootpage = (SELECT max(rootpage) FROM sqlite_master) WHERE name = '{table}'",
)


def change_header(file: Path, draw: random.Random) -> None:
    """Change a field of the header of the database."""
    data = bytearray(file.read_bytes())
    offset, form = draw.choice(_HEADER)
    top = 1 << 8 * struct.calcsize(form)
    struct.pack_into(form, data, offset, draw.choice((0, 1, 2, 3, 4, 512, top - 1, top // 2)) % top)
    file.write_bytes(data)


def change_page(file: Path, draw: random.Random) -> None:
    """Change the header, a pointer or a cell of a page."""
    data = bytearray(file.read_bytes())
    (size,) = struct.unpack(">H", data[16:18])
    size = 65_536 if size == 1 else size
    start = draw.randrange(len(data) // size) * size
    start += 100 if start == 0 else 0
    way = draw.randrange(4)
    if way == 0:
        data[start] = draw.choice((0, 1, 2, 5, 10, 13, 255))
    elif way == 1:
        struct.pack_into(
            ">H", data, start + draw.choice((1, 3, 5, 8, 10, 12)), draw.choice((0, 1, 4000, 65_535))
        )
    elif way == 2:
        other = draw.randrange(len(data) // size) * size
        data[start : start + 512] = data[other : other + 512]
    else:
        data[start + draw.randrange(size - 100)] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def change_row(file: Path, draw: random.Random) -> None:
    """Set a column of one or all rows to a value of any type."""
    table, column = _column(file, draw)
    value = draw.choice((*NUMBERS[:25], *TEXTS, None, b"", draw.randbytes(40), "x" * 300_000, b"\xff" * 5))
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = float(value)
    row = draw.choice(("", f' WHERE rowid = (SELECT min(rowid) FROM "{table}")'))
    text = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    cast = "CAST(? AS TEXT)" if isinstance(value, str) else "?"  # also texts that are no UTF-8
    _run(file, f'UPDATE "{table}" SET "{column}" = {cast}{row}', (text,))


def change_schema(file: Path, draw: random.Random) -> None:
    """Run a statement that changes the schema, the rows or the settings of the file."""
    table, column = _column(file, draw)
    for statement in draw.choice(_STATEMENTS).splitlines():
        quote = "" if "sqlite_master" in statement or "content=" in statement else '"'
        _run(file, statement.format(table=f"{quote}{table}{quote}", column=f'"{column}"'))


def change_message(file: Path, draw: random.Random) -> None:
    """Change a msgpack value in a row: a value of its tree, or an extension that names a constructor."""
    with closing(sqlite3.connect(file)) as connection:
        tables = [
            name
            for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
            if not (sql or "").upper().endswith("WITHOUT ROWID")
        ]
        cells = []
        for table in tables:
            columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
            for column in columns:
                rows = connection.execute(
                    f'SELECT rowid, "{column}" FROM "{table}" WHERE typeof("{column}") = \'blob\''
                ).fetchall()
                cells += [(table, column, number, value) for number, value in rows]
        table, column, number, value = draw.choice(cells)
        if draw.random() < 0.5:
            tree = [msgpack.unpackb(value, strict_map_key=False)]
            _change_tree(tree, draw)
            value = msgpack.packb(tree[0], default=str)
        else:
            payload: Any = msgpack.packb(_call(draw))
            ext: Any = msgpack.packb(msgpack.ExtType(draw.choice((0, 1, 2, 3, 4, 5, 6, 99)), payload))
            place = draw.randrange(len(value) + 1)
            value = draw.choice((ext, b"\x81\xa2id\x01" + ext, value[:place] + ext + value[place:]))
        connection.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', (value, number))
        connection.commit()


def add_journal(file: Path, draw: random.Random) -> None:
    """Put a journal, a log or another file of SQLite beside the file."""
    name = draw.choice(("-wal", "-journal", "-shm"))
    content = draw.choice(
        (
            b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504) + draw.randbytes(4096),
            struct.pack(">IIIIIIII", 0x377F0682, 3007000, 4096, 0, 1, 2, 3, 4) + draw.randbytes(4120),
            draw.randbytes(33_000),
            b"",
        )
    )
    beside = file.with_name(file.name + name)
    if draw.random() < 0.2:
        beside.symlink_to("../victim/precious.txt")
    elif draw.random() < 0.1:
        shutil.copy(file, beside)
    else:
        beside.write_bytes(content)


def _call(draw: random.Random) -> Any:
    module, name = draw.choice(
        (
            ("os", "system"),
            ("subprocess", "run"),
            ("builtins", "exec"),
            ("pathlib", "Path"),
            ("evilmod", "Foo"),
        )
    )
    return draw.choice(
        (
            [module, name, ["touch canary"]],
            [module, name, "touch canary"],
            [module, name, {"args": "touch canary"}],
            [module, name, {"args": "touch canary"}, "model_validate_json"],
            [module, [name], None],
            [
                "langchain_core.messages.human",
                "HumanMessage",
                {"content": any_value(draw)},
                "model_construct",
            ],
            ["scrubjay.memory.bank.bank", "MemoryBank", ["../victim/precious.txt"]],
        )
    )


def _change_tree(tree: Any, draw: random.Random) -> None:
    place: Any = tree
    key: Any = 0
    while isinstance(place[key], dict | list) and place[key] and draw.random() < 0.8:
        place = place[key]
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
    value = any_value(draw)
    place[key] = str(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


def _column(file: Path, draw: random.Random) -> tuple[str, str]:
    with closing(sqlite3.connect(file)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = draw.choice(tables)
        return table, draw.choice([row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')])


def _run(file: Path, statement: str, values: tuple[Any, ...] = ()) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        try:
            connection.execute(statement, values)
            connection.commit()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise ValueError(str(error)) from error


WAYS = (
    change_header,
    change_page,
    change_page,
    change_row,
    change_row,
    change_row,
    change_schema,
    change_schema,
    change_message,
    add_journal,
)

"""A file with objects that no bank has is refused before they run; files of all versions open."""

import contextlib
import lzma
import shutil
import sqlite3
from pathlib import Path

import pytest

from scrubjay.memory import DamagedBankError, MemoryBank
from scrubjay.memory.bank.consolidation import Change, Consolidation
from scrubjay.memory.bank.file.schema import LAYOUTS, MIGRATIONS
from scrubjay.memory.bank.file.store import Store

BANKS = sorted((Path(__file__).parent / "banks").glob("*.db.xz"))
"""Banks that older versions of Scrubjay, and other versions of SQLite, wrote."""


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A bank with the tables of all parts of Scrubjay."""
    path = tmp_path_factory.mktemp("bank") / "intact.db"
    with MemoryBank(path) as bank:
        for i in range(5):
            bank.add(f"the heron ate fish {i}", namespace=("ada",), merge=False)
        for name in LAYOUTS:
            bank.store.add_tables(name)
    return path


def alter(intact, tmp_path, *statements):
    """Return a copy of the bank after statements of another program."""
    path = tmp_path / "altered.db"
    shutil.copy(intact, path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return path


def use(path, foreign=False):
    with MemoryBank(path, foreign=foreign) as bank:
        assert bank.search("heron")
        bank.forget(bank.add("a new text", merge=False))
        return len(bank)


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
EVIL = {
    "trigger": ("CREATE TRIGGER evil AFTER INSERT ON records BEGIN UPDATE records SET trust = 'user'; END",),
    "trigger on deletion": (
        "CREATE TABLE evil (text)",
        "CREATE TRIGGER evil2 BEFORE DELETE ON records BEGIN INSERT INTO evil VALUES (OLD.text); END",
    ),
    "trigger on checkpoints": (
        f"CREATE TRIGGER evil AFTER INSERT ON checkpoints BEGIN INSERT INTO sayings {ENDLESS}; END",
    ),
    "trigger on items": ("CREATE TRIGGER evil AFTER INSERT ON items BEGIN DELETE FROM records; END",),
    "view": (f"CREATE VIEW evil AS {ENDLESS}",),
    "view in place of a table": ("DROP TABLE facts", f"CREATE VIEW facts AS {ENDLESS}"),
    "generated column": ("ALTER TABLE records ADD COLUMN evil GENERATED ALWAYS AS (zeroblob(100000000))",),
    "expression": ("CREATE INDEX evil ON records (hex(zeroblob(100000)))",),
    "partial index": ("CREATE INDEX evil ON records (id) WHERE hex(zeroblob(100000)) > ''",),
    "plain index": ("CREATE INDEX evil ON records (text)",),
    "table": ("CREATE TABLE evil (text)",),
    "virtual table": ("CREATE VIRTUAL TABLE evil USING fts5(text)",),
    "column": ("ALTER TABLE facts ADD COLUMN evil",),
    "default": (
        "DROP TABLE layouts",
        "CREATE TABLE layouts (name TEXT, version DEFAULT (hex(zeroblob(100000000))))",
    ),
    "other definition": (
        "DROP INDEX records_by_observation",
        "CREATE INDEX records_by_observation ON records (observed DESC)",
    ),
    "our trigger on another table": (
        "DROP TRIGGER forget_surprise",
        "CREATE TRIGGER forget_surprise AFTER DELETE ON records BEGIN DELETE FROM surprise; END",
    ),
}
MISSING = (
    "DROP INDEX records_by_time",
    "DROP TABLE sayings",
    "DROP TRIGGER forget_surprise",
    "DROP TABLE postings",
)


@pytest.mark.parametrize("statements", EVIL.values(), ids=EVIL)
def test_an_object_that_no_bank_has_is_named_and_nothing_runs(intact, tmp_path, statements):
    path = alter(intact, tmp_path, *statements)
    before = path.read_bytes()
    pattern = "evil|another definition|the view 'facts'|the table 'checkpoints'"
    for opening in (MemoryBank, Store, lambda path: MemoryBank(path, foreign=True)):
        with pytest.raises(DamagedBankError, match=rf"not as Scrubjay writes a bank: .*({pattern})"):
            opening(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("statement", MISSING)
def test_a_missing_object_is_named(intact, tmp_path, statement):
    with pytest.raises(DamagedBankError, match=f"lacks the .*{statement.split()[-1]}"):
        MemoryBank(alter(intact, tmp_path, statement))


@pytest.mark.parametrize(
    "statement",
    ["PRAGMA user_version = -1", "PRAGMA application_id = 7", "PRAGMA user_version = -2147483648"],
)
def test_a_header_that_no_bank_has_is_named(intact, tmp_path, statement):
    with pytest.raises(DamagedBankError, match=statement.removeprefix("PRAGMA ").replace(" = ", "=")):
        MemoryBank(alter(intact, tmp_path, statement))


@pytest.mark.parametrize("row", ["('unknown', 1)", "('items', -1)", "('items', 'x')", "('messages', NULL)"])
def test_an_unknown_layout_is_refused(intact, tmp_path, row):
    path = alter(intact, tmp_path, f"INSERT OR REPLACE INTO layouts VALUES {row.replace('NULL', '0')}")
    with pytest.raises(DamagedBankError, match="`layouts` has the entry"):
        MemoryBank(path)


@pytest.mark.parametrize("root", ["1", "(SELECT rootpage FROM sqlite_master WHERE name = 'records')"])
def test_tables_on_one_page_are_refused(intact, tmp_path, root):
    path = alter(
        intact,
        tmp_path,
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_master SET rootpage = {root} WHERE name = 'sayings'",
    )
    with pytest.raises(DamagedBankError):
        MemoryBank(path)


def test_a_schema_of_many_tables_takes_no_time(intact, tmp_path):
    path = alter(
        intact,
        tmp_path,
        "PRAGMA writable_schema = ON",
        "INSERT INTO sqlite_master WITH RECURSIVE c(x) AS "
        "(VALUES (1) UNION ALL SELECT x + 1 FROM c LIMIT 20000) "
        "SELECT 'view', 'v' || x, 'v' || x, 0, 'CREATE VIEW v' || x || ' AS SELECT 1' FROM c",
    )
    with pytest.raises(DamagedBankError, match="more than 100,000 steps"):
        MemoryBank(path)


def test_a_long_statement_in_a_schema_is_refused(intact, tmp_path):
    path = alter(
        intact,
        tmp_path,
        "PRAGMA writable_schema = ON",
        "INSERT INTO sqlite_master VALUES ('view', 'v', 'v', 0, "
        "'CREATE VIEW v AS SELECT 1' || replace(hex(zeroblob(100000)), '00', ' + 1'))",
    )
    with pytest.raises(DamagedBankError):
        MemoryBank(path)


@pytest.mark.parametrize("bank", BANKS, ids=lambda path: path.name.partition(".")[0])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_bank_of_another_version_opens_and_works(tmp_path, bank, foreign):
    path = tmp_path / "bank.db"
    path.write_bytes(lzma.decompress(bank.read_bytes()))
    assert use(path, foreign) >= 2
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


@pytest.mark.parametrize("statement", ["VACUUM", "ANALYZE", "PRAGMA journal_mode = DELETE", "REINDEX"])
def test_a_bank_that_was_maintained_opens_and_works(intact, tmp_path, statement):
    assert use(alter(intact, tmp_path, statement)) == 5
    assert use(tmp_path / "altered.db", foreign=True) == 5


def test_tables_of_all_parts_are_written_and_read_again(tmp_path):
    path = tmp_path / "bank.db"
    for _ in range(2):
        with MemoryBank(path) as bank:
            decision = Consolidation(bank, lambda text, records: [Change("add")]).add("Ada lives in Bern.")
            assert bank.get(decision.steps[0].written_id or "")
            for name in LAYOUTS:
                bank.store.add_tables(name)


def test_white_space_of_the_definitions_does_not_matter(intact, tmp_path):
    path = alter(
        intact,
        tmp_path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(replace(sql, '(', '  ( '), ',', ' ,' || char(10))"
        " WHERE name IN ('records', 'sayings', 'records_by_time')",
    )
    assert use(path) == 5


def test_a_long_run_of_spaces_takes_no_time_and_other_spaces_are_names(intact, tmp_path):
    for space, is_refused in ((" " * 90_000, False), ("\xa0", True), ("\u2003", True)):
        path = alter(
            intact,
            tmp_path,
            "PRAGMA writable_schema = ON",
            f"UPDATE sqlite_master SET sql = replace(sql, 'trust TEXT', 'trust{space}TEXT') "
            "WHERE name = 'records'",
        )
        if is_refused:
            with pytest.raises(DamagedBankError):
                MemoryBank(path)
        else:
            assert use(path) == 5

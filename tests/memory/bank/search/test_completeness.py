"""An index that lacks records is rebuilt from the records, with a warning."""

import contextlib
import sqlite3
import warnings

import pytest

from scrubjay.memory import DamagedBankError, MemoryBank
from scrubjay.memory.bank.file.postings import insert_entries
from scrubjay.memory.bank.search import completeness


@pytest.fixture
def path(tmp_path, letters):
    path = tmp_path / "bank.db"
    with MemoryBank(path, letters) as bank:
        for i in range(30):
            bank.add(
                f"Vera {i} keeps the kite {'abcdef'[i % 6] * 9}", namespace=("user", f"u{i % 3}"), merge=False
            )
        bank.forget(bank.add("forgotten", merge=False))
        bank.add("Vera owns a kite.")
    return path


def change(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def explained_hits(bank):
    hits = bank.search("Vera keeps which kite?", k=40, explain=True)
    return sorted((hit.id, round(hit.score, 5)) for hit in hits)


@pytest.mark.parametrize(
    "statements",
    [
        ("DELETE FROM postings",),
        ("DELETE FROM blocks",),
        ("DELETE FROM postings", "DELETE FROM blocks"),
        ("UPDATE blocks SET records = substr(records, 9)",),
        ("UPDATE postings SET data = zeroblob(4)",),
        ("UPDATE postings SET data = zeroblob(5)",),
        ("DELETE FROM postings WHERE field = 0",),
        ("DELETE FROM postings WHERE word = 'kite'",),
        ("DELETE FROM blocks", "UPDATE facts SET value = value + 31 WHERE name = 'deletions'"),
    ],
)
def test_an_incomplete_index_of_words_is_rebuilt(path, statements):
    with MemoryBank(path) as bank:
        expected = explained_hits(bank)
    change(path, *statements)
    with MemoryBank(path) as bank, pytest.warns(UserWarning, match="index of words .*lacks records"):
        hits = explained_hits(bank)
    assert hits == expected
    with MemoryBank(path) as bank:  # without a warning
        assert explained_hits(bank) == hits


def test_an_interrupted_indexing_continues_and_no_search_reads_half_an_index(path, monkeypatch):
    with MemoryBank(path) as bank:
        expected = explained_hits(bank)
        change(
            path,
            "DELETE FROM postings",
            "DELETE FROM blocks",
            "UPDATE facts SET value = 1000 WHERE name = 'unindexed'",  # as in a file of an older version
        )
        monkeypatch.setattr(completeness, "_BATCH", 7)
        interrupt_third = iter([None, None, KeyboardInterrupt])

        def insert(connection, entries):
            if error := next(interrupt_third, None):
                raise error
            insert_entries(connection, entries)

        with monkeypatch.context() as patch:
            patch.setattr(completeness, "insert_entries", insert)
            with pytest.raises(KeyboardInterrupt):
                bank.search("kite")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT SUM(length(records)) FROM blocks").fetchone() == (14 * 4,)
        id = bank.add("Vera keeps another kite.", merge=False)
        assert bank.forget(id)
        assert explained_hits(bank) == expected


@pytest.mark.parametrize("statement", ["DELETE FROM marks", "DELETE FROM marks WHERE number < 20"])
def test_an_incomplete_index_of_duplicates_is_rebuilt(path, statement):
    change(path, statement)
    with MemoryBank(path) as bank:
        count = len(bank)
        with pytest.warns(UserWarning, match="index of duplicates"):
            bank.add("A kite Vera owns.")
        assert len(bank) == count


@pytest.mark.parametrize("statement", ["DELETE FROM vectors", "DELETE FROM vectors WHERE number < 20"])
def test_lost_embeddings_are_computed_again(path, letters, statement):
    with MemoryBank(path, letters) as bank:
        expected = [(hit.id, round(hit.score, 5)) for hit in bank.search("aaaaaaaaa", k=40)]
    change(path, statement)
    with MemoryBank(path, letters) as bank, pytest.warns(UserWarning, match="has lost .* embeddings"):
        assert [(hit.id, round(hit.score, 5)) for hit in bank.search("aaaaaaaaa", k=40)] == expected
    with MemoryBank(path, letters) as bank:
        assert [(hit.id, round(hit.score, 5)) for hit in bank.search("aaaaaaaaa", k=40)] == expected


def test_records_that_never_had_an_embedding_are_not_lost(tmp_path, letters):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        bank.add("a kite without an embedding")
    with MemoryBank(path, letters) as bank:
        bank.add("a ship with one")
        assert len(bank.search("kite ship")) == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET number = 9223372036854775807 WHERE number = 5",
        "UPDATE sqlite_sequence SET seq = 9223372036854775807",
        "UPDATE records SET place = 9223372036854775807",
    ],
)
def test_numbers_at_their_end_are_reported(path, statement):
    change(path, statement)

    def use():
        with MemoryBank(path) as bank, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the index of words is rebuilt
            bank.search("kite", k=40)
            bank.add("a new text", namespace=("user", "u1"), merge=False)

    with pytest.raises(DamagedBankError):
        use()

"""Transactions of the bank's file: committed writes survive, rolled back ones do not."""

import contextlib
import multiprocessing
import os
import sqlite3
from datetime import UTC, datetime

import pytest

from scrubjay.memory import DamagedBankError, MemoryBank
from scrubjay.memory.bank.file import store

START = datetime(2026, 1, 1, tzinfo=UTC)


def _write_until_killed(path, pipe):
    with MemoryBank(path) as bank:
        for i in range(10**9):
            pipe.send(bank.add(f"child fact {i}"))


def _write(path, who):
    with MemoryBank(path) as bank:
        for i in range(30):
            bank.add(f"fact {i} of {who}")
            bank.add(f"shared fact {i}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which starts a process in no time")
def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_write_until_killed, args=(tmp_path / "bank.db", sender))
    child.start()
    acknowledged_ids = [receiver.recv() for _ in range(50)]
    child.kill()
    child.join()
    sender.close()
    while receiver.poll():
        try:
            acknowledged_ids.append(receiver.recv())
        except EOFError:
            break
    with MemoryBank(tmp_path / "bank.db") as bank:
        for i, id in enumerate(acknowledged_ids):
            record = bank.get(id)
            assert record is not None
            assert record.text == f"child fact {i}"
        assert len(bank) - len(acknowledged_ids) in (0, 1)
        assert bank.search("child")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which starts a process in no time")
def test_several_processes_write_one_file(tmp_path):
    context = multiprocessing.get_context("fork")
    path = tmp_path / "bank.db"
    children = [context.Process(target=_write, args=(path, who)) for who in ("Ada", "Bob", "Cy")]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    with MemoryBank(path) as bank:
        assert len(bank) == 4 * 30
        assert all(record.sayings == 3 for record in bank.recent(200) if record.text.startswith("shared"))


def test_the_log_shrinks_once_no_reader_needs_it(tmp_path, monkeypatch):
    """The log grows during a long search, and at most `_LOG_SIZE` bytes of it stay afterwards."""
    limit = 2**20
    monkeypatch.setattr(store, "_LOG_SIZE", limit)
    path, log = tmp_path / "bank.db", tmp_path / "bank.db-wal"
    with MemoryBank(path) as bank, MemoryBank(path) as other:
        bank.add("first")
        with other.store.reading() as connection:
            connection.execute("SELECT COUNT(*) FROM records").fetchone()
            for number in range(4):
                bank.add(f"{number} {'word ' * 200_000}", merge=False)
            assert log.stat().st_size > 4 * limit
        bank.add("The next write moves the content of the log into the file.")
        bank.add("The write after it starts the log anew.")
        assert log.stat().st_size <= limit
        assert len(bank) == len(other) == 7


def test_what_is_written_together_is_there_together():
    with MemoryBank(":memory:") as bank:
        first = bank.add("Ada lives in Bern.")

        def supersede_a_deleted_record():
            with bank.store.writing():
                bank.forget(first)
                bank.add("Ada lives in Basel.", supersedes=first)

        with pytest.raises(ValueError, match="unknown record"):
            supersede_a_deleted_record()
        assert [record.text for record in bank.recent(9)] == ["Ada lives in Bern."]
        with bank.store.writing():
            bank.write(bank.embed_drafts([bank.draft("Ada lives in Basel."), bank.draft("So does Vera.")]))
            bank.forget(first)
        assert [record.text for record in bank.recent(9)] == ["Ada lives in Basel.", "So does Vera."]
        assert bank.write([]) == []


@pytest.mark.parametrize("transaction", ["reading", "writing"])
def test_what_was_searched_before_it_was_rolled_back_leaves_no_trace(letters, tmp_path, transaction):
    path = tmp_path / "bank.db"

    def explained_hits(bank):
        return [(hit.text, hit.explanation) for hit in bank.search("a real record", explain=True)]

    with MemoryBank(path, letters, lambda: START) as bank:
        ids = [bank.add(text, merge=False) for text in ("quick brown foxes", "lazy dogs", "a real fox")]
        before = explained_hits(bank)
        with contextlib.suppress(KeyError), getattr(bank.store, transaction)():
            bank.add("a phantom of nothing")
            bank.forget(ids[2])
            assert "a real fox" not in [text for text, _ in explained_hits(bank)]
            raise KeyError
        assert explained_hits(bank) == before
        bank.add("a real record, beta")
        bank.forget(ids[0])
        with MemoryBank(path, letters, lambda: START) as fresh:
            assert explained_hits(bank) == explained_hits(fresh)


def test_an_index_is_kept_unless_what_it_read_was_rolled_back(letters):
    with MemoryBank(":memory:", letters) as bank:
        id = bank.add("a real record")
        bank.search("record")
        assert bank._embedding_index is not None
        index = bank._embedding_index._index
        with bank.store.writing():
            bank.add("something else")
            bank.search("record")
        with pytest.raises(ValueError, match="unknown record"):
            bank.add("a third", supersedes="nobody")
        with contextlib.suppress(KeyError), bank.store.writing():
            bank.search("record")
            bank.forget(id)
            raise KeyError
        assert len(bank.search("record")) == 2
        assert bank._embedding_index._index is index


@pytest.mark.parametrize("version", [0, 2, 3, 99])
def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path, version):
    path = tmp_path / "users.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE users (name TEXT)")
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(DamagedBankError, match="another program's database, with tables users"):
        MemoryBank(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_where_no_file_can_be_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match=f"{tmp_path.name}' is a folder"):
        MemoryBank(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere' does not exist"):
        MemoryBank(tmp_path / "nowhere" / "bank.db")
    with pytest.raises(TypeError, match="path=None"):
        MemoryBank(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="path='': name a file"):
        MemoryBank("")

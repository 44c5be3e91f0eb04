"""Transactions of the bank's file: committed writes survive, rolled back ones do not."""

import contextlib
import multiprocessing
import os
import sqlite3
import struct
from datetime import UTC, datetime
from pathlib import Path

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


@pytest.mark.slow
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


@pytest.mark.parametrize("content", [b"x", b"SQLite format 3\0", b"\0" * 511])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_file_shorter_than_a_bank_is_refused_and_left_as_it_is(tmp_path, content, foreign):
    path = tmp_path / "bank.db"
    path.write_bytes(content)
    with pytest.raises(DamagedBankError, match=f"has {len(content)} bytes, fewer than any bank"):
        MemoryBank(path, foreign=foreign)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"\0" * 4096, b"# A text\n" * 200, b"PK\x03\x04" + b"\0" * 1000])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "bank.db"
    path.write_bytes(content)
    with pytest.raises(DamagedBankError, match=r"bank\.db"):
        MemoryBank(path)
    assert path.read_bytes() == content


def test_an_empty_file_becomes_a_bank(tmp_path):
    path = tmp_path / "bank.db"
    path.touch()
    with MemoryBank(path) as bank:
        assert len(bank) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_what_is_no_ordinary_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", "/dev/null"):
        with pytest.raises(DamagedBankError, match="not an ordinary file"):
            MemoryBank(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_to_another_file_changes_nothing(tmp_path, suffix, link):
    private, path = tmp_path / "private.txt", tmp_path / "folder" / "bank.db"
    path.parent.mkdir()
    MemoryBank(path).close()
    private.write_bytes(path.read_bytes() if not suffix else b"A private text." * 1000)
    before = private.read_bytes()
    file = path.with_name(f"bank.db{suffix}")
    file.unlink(missing_ok=True)
    link(private, file)
    with pytest.raises(DamagedBankError, match=r"hard links|symbolic link|not an ordinary file"):
        MemoryBank(path, foreign=True)
    assert private.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_link_to_a_bank_of_your_own_opens_it(tmp_path):
    with MemoryBank(tmp_path / "bank.db") as bank:
        bank.add("Ada lives in Bern.")
    (tmp_path / "link.db").symlink_to("bank.db")
    with MemoryBank(tmp_path / "link.db") as bank, MemoryBank(tmp_path / "bank.db") as other:
        bank.add("Ada moved to Basel.")
        assert len(other) == 2


@pytest.mark.parametrize("part", [0, 0.5])
def test_an_untrusted_file_that_is_truncated_while_it_is_open_raises_an_error(tmp_path, part):
    """A mapped file would end the process with SIGBUS."""
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        for i in range(200):
            bank.add(f"note {i} about kites " + "moss " * 60, merge=False)
    with MemoryBank(path, foreign=True) as bank:
        with bank.store.reading() as connection:
            assert connection.execute("PRAGMA mmap_size").fetchone() in (None, (0,))
        bank.search("kites", k=5)
        os.truncate(path, int(path.stat().st_size * part) // 4096 * 4096)
        with pytest.raises(DamagedBankError):
            list(bank.export())


def test_a_long_value_in_an_untrusted_file_is_refused(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        id, other = bank.add("A text."), bank.add("Another.")
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET text = printf('%.*c', 16777217, 'x') WHERE id = ?", (id,))
    with MemoryBank(path, foreign=True) as bank:
        with pytest.raises(DamagedBankError, match="more than 16,777,216 bytes, the limit of an untrusted"):
            bank.get(id)
        assert bank.get(other).text == "Another."  # pyright: ignore[reportOptionalMemberAccess]
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET text = printf('%.*c', 1048577, 'x') WHERE id = ?", (id,))
    message = "has 1,048,577 characters, the maximum is 1,048,576"
    with MemoryBank(path, foreign=True) as bank, pytest.raises(DamagedBankError, match=message):
        bank.get(id)


def test_pages_that_refer_to_each_other_are_refused_in_an_untrusted_file(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        for i in range(200):
            bank.add(f"note {i} about kites " + "moss " * 60, merge=False)
    content = bytearray(path.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'records'").fetchone()
    start = (root - 1) * 4096
    assert content[start] == 5  # an interior page of a table
    (first_cell,) = struct.unpack_from(">H", content, start + 12)
    struct.pack_into(">I", content, start + first_cell, root)  # its first child is the page itself
    path.write_bytes(content)
    with pytest.raises(DamagedBankError):
        MemoryBank(path, foreign=True)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs a file in which nobody can write")
def test_a_file_that_sqlite_cannot_open_is_an_os_error(tmp_path):
    (tmp_path / "a.db").symlink_to("/proc/self/environ")
    with pytest.raises(OSError, match=r"a.db' cannot be opened as a memory bank: unable to open"):
        MemoryBank(tmp_path / "a.db")

"""Updates beside an export, an import, a damaged record, another process, a kill and an index file."""

import contextlib
import multiprocessing
import os
import sqlite3
from datetime import UTC, datetime

import numpy as np
import pytest

from scrubjay.memory import DamagedBankError, MemoryBank
from scrubjay.memory.bank.file.schema import MIGRATIONS
from scrubjay.memory.bank.search import approximate, segments
from scrubjay.memory.bank.serialization import BATCH

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("provenance", ["no JSON", "", '{"source": "x"', b"\xff\xfe"])
def test_a_filter_by_field_names_the_record_without_json(tmp_path, provenance):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        bank.add("a heron", source="x")
        bad_id = bank.add("an egret", source="y")
        with bank.store.writing() as connection:
            connection.execute("UPDATE records SET provenance = ? WHERE id = ?", (provenance, bad_id))
    with MemoryBank(path) as bank:
        for act in (
            lambda: bank.search("heron", where={"source": "x"}),
            lambda: bank.forget(where={"source": "x"}),
        ):
            with pytest.raises(DamagedBankError, match=f"provenance of record '{bad_id}' is not JSON"):
                act()
        assert len(bank) == 2
        assert bank.forget(bad_id) == 1  # as the message says
        assert [hit.text for hit in bank.search("heron", where={"source": "x"})] == ["a heron"]
        assert bank.forget(where={"source": "x"}) == 1


@pytest.mark.parametrize("place", [0, BATCH - 1, BATCH, 2 * BATCH + 1])
@pytest.mark.parametrize("gap_days", [0, 3])  # one conversation, or one for each record
def test_an_export_has_each_record_once_while_records_are_updated(bank, gap_days, place):
    ids = []
    for number in range(2 * BATCH + 3):
        observed = 86400.0 * gap_days * number
        drafts = [bank.draft(f"heron x{number}", kind="conversation", observed=observed, merge=False)]
        ids += bank.write(bank.embed_drafts(drafts))
    export_ids = []
    for number, row in enumerate(bank.export()):
        export_ids.append(row["id"])
        if number == place:
            for id in (ids[0], ids[place], ids[-1], ids[BATCH]):
                bank.update(id, f"egret {id}")
    assert export_ids == ids


def test_an_export_has_the_sections_of_documents_in_their_order(bank):
    bank.add("a heron")
    bank.add_document("# Cats\nThey purr.\n\nThey sleep.\n# Dogs\nThey bark.", passage_length=20)
    bank.add("an egret", kind="task")
    bank.add_document("# Owls\nThey hoot.")
    expected = [
        row["text"] for row in sorted(bank.export(), key=lambda row: (abs(row["chunk"]), row["place"]))
    ]
    rows = list(bank.export())
    assert [row["text"] for row in rows] == expected
    assert len(rows) == len(bank)
    assert {row["chunk"] < 0 for row in rows} == {True, False}


@pytest.mark.parametrize("days", [(0, 9, 18), (18, 9, 0)])
def test_a_restored_bank_continues_the_conversation_that_the_first_continues(bank, days):
    ids: list[str] = [bank.add(f"heron x{day}", observed=86400.0 * day, merge=False) for day in days]
    for number in (0, 1):
        bank.update(ids[number], f"egret x{number}")  # each record was its whole conversation
    with MemoryBank(":memory:", clock=lambda: START) as copy:
        copy.restore(bank.export(), foreign=False)
        for one in (bank, copy):
            last = one.add("a tern", observed=86400.0 * days[-1], merge=False)
            chunk_of_record = {row["id"]: row["chunk"] for row in one.export()}
            assert chunk_of_record[last] == chunk_of_record[ids[-1]]
            assert len(set(chunk_of_record.values())) == 3


def _update(path, ids, who):
    with MemoryBank(path) as bank:
        for number in range(10):
            for id in ids:
                bank.update(id, f"heron {number} of {who}")


def _update_until_killed(path, id, pipe):
    with MemoryBank(path) as bank:
        for number in range(10**9):
            bank.update(id, f"heron {number}")
            pipe.send(number)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which starts a process in no time")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_update_the_same_records(tmp_path):
    path, context = tmp_path / "bank.db", multiprocessing.get_context("fork")
    with MemoryBank(path) as bank:
        ids = [bank.add(f"heron of nobody {number}", merge=False) for number in range(3)]
    children = [context.Process(target=_update, args=(path, ids, who)) for who in ("Ada", "Bob")]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    expected = {f"heron {number} of {who}" for number in range(10) for who in ("Ada", "Bob")}
    with MemoryBank(path) as bank:
        assert len(bank) == 3
        for number, id in enumerate(ids):
            texts = [version.text for version in bank.history(id)]
            assert texts[0] == f"heron of nobody {number}"
            assert len(texts) == 21
            assert set(texts[1:]) == expected
            assert [texts[-1]] == bank.sayings(id)
        assert {hit.id for hit in bank.search("heron")} == set(ids)
        assert bank.search("nobody") == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which starts a process in no time")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_kill_during_an_update_leaves_the_old_or_the_new_text(tmp_path):
    path, context = tmp_path / "bank.db", multiprocessing.get_context("fork")
    with MemoryBank(path) as bank:
        id = bank.add("heron start")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_update_until_killed, args=(path, id, sender))
    child.start()
    last_number = [receiver.recv() for _ in range(20)][-1]
    child.kill()
    child.join()
    sender.close()
    with contextlib.suppress(EOFError):
        while receiver.poll():
            last_number = receiver.recv()
    with MemoryBank(path) as bank:
        texts = [version.text for version in bank.history(id)]
        assert texts == ["heron start", *(f"heron {number}" for number in range(len(texts) - 1))]
        assert last_number + 2 <= len(texts) <= last_number + 3
        assert [hit.text for hit in bank.search("heron")] == [texts[-1]]
        assert len(bank) == 1
        assert bank.update(id, "an egret")
        assert bank.search("heron") == []


class RandomEmbeddings:
    """Random embeddings, seeded by the text."""

    def embed_query(self, text):
        return np.random.default_rng(int.from_bytes(text.encode()[-12:])).standard_normal(24).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


@pytest.mark.requires("usearch")
@pytest.mark.parametrize("updater_is_approximate", [True, False])
def test_an_approximate_search_finds_the_new_embedding_alone(tmp_path, monkeypatch, updater_is_approximate):
    for module in (segments, approximate):
        monkeypatch.setattr(module, "SEGMENT", 40)
    path, model = tmp_path / "bank.db", RandomEmbeddings()
    with MemoryBank(path, model, lambda: START) as bank:
        drafts = [bank.draft(f"fact {number}", merge=False) for number in range(90)]
        ids = bank.write(bank.embed_drafts(drafts))
    with MemoryBank(path, model, lambda: START, approximate=True) as bank:
        assert [hit.id for hit in bank.search("fact 7", 1, by="meaning")] == [ids[7]]
        with MemoryBank(path, model, lambda: START, approximate=updater_is_approximate) as updater:
            updater.update(ids[7], "another claim")
        (new,) = bank.search("another claim", 1, by="meaning")
        assert (new.id, new.text) == (ids[7], "another claim")
        assert new.score == pytest.approx(1, abs=1e-2)
        score_of_record = {hit.id: hit.score for hit in bank.search("fact 7", 90, by="meaning")}
        assert score_of_record.get(ids[7], -1.0) < 0.9
        assert len(bank.search("fact 7", 90, by="meaning")) == len(score_of_record)  # each record once
    vector = np.array(model.embed_query("fact 7"), dtype=np.float32)
    old = (vector / np.linalg.norm(vector)).astype(np.float16).tobytes()
    assert not any(old in file.read_bytes() for file in (tmp_path / "bank.db-ann").glob("*"))


def test_a_file_of_before_the_history_opens_without_one(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        id = bank.add("a heron")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for event in ("insert", "update", "delete"):
            connection.execute(f"DROP TRIGGER quantized_after_{event}")
        for table in ("history", "expiries", "quantized"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 4")
        connection.commit()
    with MemoryBank(path) as bank:
        assert [(version.text, version.end) for version in bank.history(id)] == [("a heron", None)]
        assert [row["history"] for row in bank.export()] == [[]]
        assert bank.update(id, "an egret")
        assert [version.text for version in bank.history(id)] == ["a heron", "an egret"]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)

"""Time to live of records, and decay of their scores."""

import contextlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.record import DAY
from scrubjay.memory.bank.serialization import BATCH

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Clock that a test sets, in days since START."""

    days = 0.0

    def __call__(self):
        return START + timedelta(days=self.days)


@pytest.fixture
def clock():
    return Clock()


def test_a_record_is_found_until_its_time_has_passed_and_then_deleted(bank, clock):
    short, long = bank.add("a heron wades", ttl=1), bank.add("a heron flies")
    assert {hit.id for hit in bank.search("heron")} == {short, long}
    assert bank.expire() == 0
    clock.days = 1.0
    assert [hit.id for hit in bank.search("heron")] == [long]
    assert [record.id for record in bank.recent(9)] == [long]
    assert bank.get(short) is not None
    assert bank.expire() == 1
    assert bank.get(short) is None
    assert (bank.expire(), len(bank)) == (0, 1)


def test_a_write_deletes_expired_records_without_a_byte(tmp_path, clock):
    path = tmp_path / "bank.db"
    with MemoryBank(path, clock=clock) as bank:
        bank.add("secret heron", ttl=0.5)
        clock.days = 1.0
        bank.add("an egret")
        assert len(bank) == 1
        assert not any(b"secret" in file.read_bytes() for file in tmp_path.iterdir())


def test_many_expired_records_are_deleted_in_batches(bank, clock):
    drafts = [bank.draft(f"heron x{number}", ttl=1 + number) for number in range(2 * BATCH + 3)]
    bank.write(bank.embed_drafts(drafts))
    clock.days = BATCH + 10.0
    assert bank.expire() == BATCH + 10
    clock.days = 1e5
    bank.add("an egret")
    assert len(bank) == 2 * BATCH + 4 - (BATCH + 10) - (BATCH - 7) == 1


def test_a_record_with_an_end_neither_merges_nor_is_merged(bank, clock):
    ids = {bank.add("a heron", ttl=1), bank.add("a heron"), bank.add("a heron", ttl=1)}
    assert len(ids) == 3
    clock.days = 2.0
    assert bank.expire() == 2
    assert [record.sayings for record in bank.recent(9)] == [1]


def test_an_update_and_a_restored_export_keep_the_time(bank, clock):
    id = bank.add("a heron", ttl=2)
    assert bank.update(id, "an egret")
    rows = [json.loads(json.dumps(row)) for row in bank.export()]
    assert rows[0]["expires"] == (START + timedelta(days=2)).timestamp()
    with MemoryBank(":memory:", clock=clock) as copy:
        assert copy.restore(rows) == [True]
        clock.days = 3.0
        assert (bank.expire(), copy.expire()) == (1, 1)
        assert copy.restore([rows[0] | {"expires": None}]) == [True]
        assert copy.restore([{name: value for name, value in rows[0].items() if name != "expires"}]) == [
            False
        ]
        with pytest.raises(ValueError, match="expires="):
            copy.restore([rows[0] | {"id": "x", "expires": "soon"}])


def test_an_earlier_end_of_validity_stays_and_a_long_life_ends_with_the_calendar(bank):
    id = bank.add("a heron", valid_to="2026-01-02", ttl=9)
    assert bank.get(id).valid_to == datetime(2026, 1, 2, tzinfo=UTC)
    assert bank.get(bank.add("an egret", ttl=1e9)).valid_to.year == 9999


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "1"])
def test_a_number_of_days_that_is_none_is_refused(bank, value):
    for act in (lambda: bank.add("a heron", ttl=value), lambda: bank.search("heron", half_life=value)):
        with pytest.raises((ValueError, TypeError), match=r"(ttl|half_life)=.*days"):
            act()
    assert len(bank) == 0


def test_a_damaged_time_is_reported(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        bank.add("a heron", ttl=1)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE expiries SET time = 'soon'")
        connection.commit()
    with MemoryBank(path) as bank:
        assert bank.expire() == 0  # a text is larger than each number
        assert next(iter(bank.export()))["expires"] == "soon"


def test_a_score_halves_with_each_half_life(bank, clock):
    fields = {"kind": "knowledge", "merge": False}
    for number in range(40):
        bank.add(
            f"a heron {'wades ' * (number % 5)}x{number}", observed=START - timedelta(days=number), **fields
        )
    plain = bank.search("heron wades", k=40, explain=True)
    ages = {hit.id: (START - hit.observed).total_seconds() / DAY for hit in plain}
    for half_life in (0.5, 10, 1e9):
        hits = bank.search("heron wades", k=40, half_life=half_life, explain=True)
        scores = {hit.id: hit.score * 0.5 ** (ages[hit.id] / half_life) for hit in plain}
        np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.id] for hit in hits], atol=1e-12)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        for hit in hits:
            parts = hit.explanation
            total = parts.from_words + parts.from_embeddings + parts.from_neighbours
            assert total + parts.recency + parts.importance == pytest.approx(hit.score)
    assert [hit.id for hit in hits] == [hit.id for hit in plain]


def test_a_new_record_overtakes_many_old_ones(bank):
    for number in range(3000):
        bank.add(
            f"heron heron x{number}", observed=START - timedelta(days=365), kind="knowledge", merge=False
        )
    text = "The marsh was wide, and among the reeds that the wind bent stood one heron."
    new = bank.add(text, kind="knowledge")
    assert bank.search("heron", k=1)[0].id != new
    assert bank.search("heron", k=1, half_life=30)[0].id == new


def test_a_search_by_meaning_alone_has_no_decay():
    class Embeddings:
        embed_documents = staticmethod(lambda texts: [[1.0, 0.0]] * len(texts))
        embed_query = staticmethod(lambda text: [1.0, 0.0])

    with (
        MemoryBank(":memory:", Embeddings()) as bank,
        pytest.raises(ValueError, match="half_life with by='meaning'"),
    ):
        bank.search("heron", by="meaning", half_life=1)

"""The index of words returns what was inserted, and deletion leaves no byte of a record."""

import itertools
import sqlite3
from collections import Counter
from datetime import UTC

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.file import postings
from scrubjay.memory.bank.file.postings import (
    BLOCK,
    LENGTHS,
    Field,
    WordIndex,
    delete_entry,
    has_postings,
    index_entry,
    insert_entries,
    unindexed_numbers,
)
from scrubjay.memory.bank.file.schema import MIGRATIONS
from scrubjay.memory.bank.file.words import Term, index_words

NUMBERS = st.integers(1, 4) | st.integers(BLOCK - 2, BLOCK + 2) | st.integers(9 * BLOCK, 9 * BLOCK + 300)
TEXTS = st.lists(st.sampled_from(["heron", "mill", "oar", "Ωmega", "磨坊"]), max_size=6).map(" ".join)


@pytest.fixture
def connection():
    return empty_index()


def empty_index():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in itertools.chain.from_iterable(MIGRATIONS):
        if statement.startswith(("CREATE TABLE postings", "CREATE TABLE blocks")):
            connection.execute(statement)
    return connection


def entry(text):
    return {Field.TEXT: Counter(index_words(text))} if text else {}


def contents(connection):
    """Return the words of each record with their counts, as a search reads them."""
    index, result = WordIndex(connection), {}
    for (word,) in connection.execute("SELECT DISTINCT word FROM postings").fetchall():
        entries = index.read(Term((word,)))[Field.TEXT]
        for number, count in zip(
            index.numbers(entries.positions).tolist(), entries.counts.tolist(), strict=True
        ):
            result.setdefault(number, Counter())[word] = count
    return result


@given(st.dictionaries(NUMBERS, TEXTS, max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_a_search_reads_what_was_inserted_and_not_deleted(texts, data):
    connection = empty_index()
    first = data.draw(st.integers(0, len(texts)))
    items = [(number, entry(text)) for number, text in texts.items()]
    insert_entries(connection, items[:first])
    for item in items[first:]:
        insert_entries(connection, [item])
    assert contents(connection) == {n: Counter(index_words(t)) for n, t in texts.items() if t}
    deletions = data.draw(st.sets(st.sampled_from(sorted(texts)))) if texts else set()
    for number in deletions:
        words = set(index_words(texts[number])) if data.draw(st.booleans()) else set()
        delete_entry(connection, number, words, len(index_words(texts[number])))
    rest = {n: t for n, t in texts.items() if n not in deletions}
    assert contents(connection) == {n: Counter(index_words(t)) for n, t in rest.items() if t}
    index = WordIndex(connection)
    assert index.records == len(rest)
    if rest:
        lengths = [len(index_words(text)) for text in rest.values()]
        assert index.mean_length == pytest.approx(max(np.mean(lengths), 1))
    else:
        assert connection.execute("SELECT COUNT(*) FROM postings").fetchone() == (0,)
        assert connection.execute("SELECT COUNT(*) FROM blocks").fetchone() == (0,)


def test_every_byte_survives_in_every_posting(connection):
    for offset in range(1, 600):
        insert_entries(connection, [(offset, {Field.TEXT: Counter({"heron": offset % 255 + 1})})])
    entries = WordIndex(connection).read(Term(("heron",)))[Field.TEXT]
    assert entries.positions.tolist() == list(range(1, 600))
    assert entries.counts.tolist() == [offset % 255 + 1 for offset in range(1, 600)]


@pytest.mark.parametrize("length", [0, 1, 2, 5, 50, 127, 128, 129, 1000, 20_000, 1 << 20])
def test_a_length_is_exact_or_within_four_percent(length):
    length_in_file = LENGTHS[postings._code_length(length)]
    assert length_in_file == length if length < 128 else length_in_file == pytest.approx(length, rel=0.04)


def test_fields_come_from_the_record_and_its_metadata():
    words_of_field = index_entry(
        "The heron eats.", "knowledge", "user\x1fada\x1f", 86400.0 * 40, UTC,
        '{"title": "Birds", "section": "Food", "speaker": "Ada", "page": 3}',
    )  # fmt: skip
    assert words_of_field[Field.TEXT] == Counter(["the", "heron", "eat"])
    assert words_of_field[Field.TITLE] == Counter(["bird", "food"])
    assert words_of_field[Field.SPEAKER] == Counter(["ada"])
    assert words_of_field[Field.DATE] == Counter(["10", "februari", "1970", "02"])
    assert len(words_of_field[Field.SCOPE]) == 3
    for provenance in ("", "[1]", "{", '{"title": 3}', "[" * 100_000):
        assert Field.TITLE not in index_entry("x", "task", "", 0.0, UTC, provenance)


def test_a_record_without_an_entry_is_named_and_deleted_without_effect(connection):
    connection.execute("CREATE TABLE records (number INTEGER PRIMARY KEY)")
    connection.executemany("INSERT INTO records VALUES (?)", [(1,), (2,), (BLOCK,), (7 * BLOCK + 5,)])
    insert_entries(connection, [(2, entry("heron")), (BLOCK, entry("mill"))])
    assert unindexed_numbers(connection, 10) == [1, 7 * BLOCK + 5]
    assert unindexed_numbers(connection, 1) == [1]
    delete_entry(connection, 1, {"heron"}, 1)
    assert has_postings(connection, 2, {"heron"})
    assert not has_postings(connection, 2, {"heron", "mill"})
    assert not has_postings(connection, 1, set())


def test_a_deleted_record_leaves_no_byte_though_its_words_are_unknown(tmp_path, monkeypatch):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        bank.add("the heron")
        id = bank.add("the xylophonist", source="quagga", title="okapi", speaker="Zebedee", merge=False)
        monkeypatch.setattr("scrubjay.memory.bank.index.entry_words", lambda *record: set())
        bank.forget(id)
    content = path.read_bytes().lower()
    for word in ("xylophonist", "quagga", "okapi", "zebede"):
        assert word.encode() not in content

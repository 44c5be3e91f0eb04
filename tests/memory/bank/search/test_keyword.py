"""Keyword search scores records by BM25F."""

import math
import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from scrubjay.memory.bank.search.candidates import Filter
from scrubjay.memory.bank.search.keyword import _rarity, match_keywords

WORDS = ["heron", "mill", "quay", "ferry", *(f"filler{n}" for n in range(200))]


def texts(hits):
    return [hit.text for hit in hits]


def test_common_words_add_to_rare_ones_and_select_records_in_a_kind(bank):
    bank.add("a heron by the water", merge=False)
    bank.add("an early boat", merge=False)
    bank.add("a mill", merge=False)
    bank.add("another mill", merge=False)
    bank.add("a heron by the boat", merge=False)
    for n in range(40):
        bank.add(f"boat number {n}", kind="task")
    assert texts(bank.search("heron boat", kinds="conversation"))[0] == "a heron by the boat"
    results = texts(bank.search("heron boat", k=50))
    assert results[0] == "a heron by the boat"
    assert "a heron by the water" in results
    assert len(results) == 45  # and the neighbours of the hits


def test_scores_are_those_of_sqlite(bank, monkeypatch):
    """FTS5's BM25 is an independent implementation. The records have no words in their dates."""
    monkeypatch.setattr("scrubjay.memory.bank.search.keyword._SATURATION", 1.2)
    random = np.random.default_rng(3)
    sentences = [
        " ".join(random.choice(WORDS, size=size)) for size in [*random.integers(1, 100, 60), 300, 1000]
    ]
    index = sqlite3.connect(":memory:")
    index.execute("CREATE VIRTUAL TABLE t USING fts5(body, tokenize = 'porter unicode61')")
    for sentence in sentences:
        bank.add(sentence, merge=False)
        index.execute("INSERT INTO t VALUES (?)", (sentence,))
    for query in ("heron", "heron mill quay", "ferry heron heron", "absent"):
        expression = " OR ".join(dict.fromkeys(query.split()))
        rows = index.execute("SELECT rowid, -rank FROM t WHERE t MATCH ?", (expression,)).fetchall()
        with bank.store.reading() as connection:
            matches = match_keywords(connection, query, Filter(1e10, None, None, None), 100, 1e-9)
            rarities = sum(
                rarity
                for word in dict.fromkeys(query.split())
                if (rarity := _rarity(sum(word in sentence.split() for sentence in sentences), 62)) > 0
            )
        divisor = math.sqrt(rarities) if rarities > 1 else max(rarities, 1e-6)
        scores = dict(zip(matches.numbers.tolist(), matches.scores * divisor, strict=True))
        assert scores.keys() == {row for row, _ in rows}
        for row, expected in rows:  # FTS5 counts words exactly, the index within 4 % from 128 words on
            assert scores[row] == pytest.approx(expected, rel=0.04 if row > 60 else 1e-6, abs=1e-5)


def test_of_many_that_say_the_same_words_the_newest_are_found(bank, clock):
    for n in range(400):
        clock.now += timedelta(days=2)
        bank.add(f"the boat sails x{n}", merge=False)
    assert texts(bank.search("boat", k=3)) == [f"the boat sails x{n}" for n in (399, 398, 397)]


@pytest.mark.parametrize("records", [1, 2, 3, 300])
def test_who_says_all_of_the_words_gets_at_least_one_however_common_they_are(bank, records):
    for n in range(records):
        bank.add(f"a heron feeds by water{n}", merge=False, namespace=(str(n),))
    (hit, *_) = bank.search("heron feeds", k=1, explain=True)
    assert hit.explanation is not None
    assert hit.explanation.from_words == pytest.approx(1, rel=0.2)


def test_a_title_and_a_speaker_are_found_and_add_to_the_text(bank):
    bank.add("It eats fish.", kind="knowledge", title="The heron", merge=False)
    bank.add("The heron sleeps.", kind="knowledge", speaker="Vera", merge=False)
    bank.add("The heron eats fish.", kind="knowledge", title="The heron", merge=False)
    for n in range(9):
        bank.add(f"A boat sails {n}.", kind="task", merge=False)
    assert next(hit.text for hit in bank.search("heron")) == "The heron eats fish."
    assert len(bank.search("heron", kinds="knowledge")) == 3
    assert texts(bank.search("Vera", k=1)) == ["The heron sleeps."]


@pytest.mark.parametrize("kind", ["conversation", "knowledge"])
def test_only_turns_of_a_conversation_lend_their_words(bank, kind):
    for n in range(40):
        bank.add(f"A boat sails {n}.", kind="task", merge=False)
    bank.add("Which quay do herons and ospreys like?", kind=kind, merge=False)
    bank.add("The northern one.", kind=kind, merge=False)
    hits = bank.search("quay herons ospreys", explain=True)
    assert len(hits) == (2 if kind == "conversation" else 1)


def test_what_is_told_of_a_day_later_is_found_among_what_was_said_on_it(bank, clock):
    clock.now = datetime(2023, 1, 1, tzinfo=UTC)
    for n in range(40):
        bank.add(f"bread{n} was baked", merge=False)
        clock.now += timedelta(days=2)
    clock.now = datetime(2025, 2, 25, 9, tzinfo=UTC)
    for n in range(8):
        bank.add(f"the lamp of room {n} is dim", merge=False)
        clock.now += timedelta(minutes=1)
    clock.now += timedelta(days=7)
    bank.add("On 25 February 2025 Marta flew out")
    (first, *_) = bank.search("what happened on 25 February 2025?", k=3)
    assert first.text == "On 25 February 2025 Marta flew out"
    (first, *_) = bank.search("which lamp on 25 February 2025?", k=3)
    assert "lamp" in first.text

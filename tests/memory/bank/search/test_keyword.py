"""Keyword search bounds the number of candidates of common words."""

from datetime import UTC, datetime, timedelta

import pytest

from scrubjay.memory.bank.search import keyword


def texts(hits):
    return [hit.text for hit in hits]


def test_words_that_too_many_records_hold_choose_none_but_weigh(bank, monkeypatch):
    monkeypatch.setattr(keyword, "_MAX_MATCHES", 5)
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
    # The newest five, and the neighbour of the oldest of them.
    assert set(texts(bank.search("boat", k=50))) == {f"boat number {n}" for n in range(34, 40)}


def test_of_many_that_say_the_same_words_the_newest_are_found(bank, clock):
    for n in range(400):
        clock.now += timedelta(days=2)
        bank.add(f"the boat sails x{n}", merge=False)
    assert texts(bank.search("boat", k=3)) == [f"the boat sails x{n}" for n in (399, 398, 397)]


@pytest.mark.parametrize("records", [1, 2, 3, 300])
def test_who_says_all_of_the_words_gets_about_five_however_common_they_are(bank, records):
    for n in range(records):
        bank.add(f"a heron feeds by water{n}", merge=False, namespace=(str(n),))
    (hit, *_) = bank.search("heron feeds", k=1, explain=True)
    assert hit.explanation is not None
    assert hit.explanation.from_words == pytest.approx(5, rel=0.2)


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

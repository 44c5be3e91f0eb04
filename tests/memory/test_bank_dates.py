import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank_dates import Day, read_dates

SPELT = [
    "23 March 2025",
    "23rd of March, 2025",
    "March 23, 2025",
    "Mar. 23rd 2025",
    "23 mar 2025",
    "2025年3月23日",
    "2025 年 3 月 23 号",
    "2025-03-23",
]
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("asked", SPELT)
@pytest.mark.parametrize("said", SPELT)
def test_a_day_is_found_however_it_is_spelt(said, asked):
    with MemoryBank(":memory:") as bank:
        for other in (
            "24 March 2025",
            "March 2025",
            "23 April 2025",
            "At 23 we met",
            "2025年3月24日",
            "23 3 2025",
        ):
            bank.add(f"It rained {other}, all day.", observed=LONG_AGO, merge=False)
        right = bank.add(f"It rained {said}, all day.", observed=LONG_AGO, merge=False)
        assert [hit.id for hit in bank.search(f"{asked}", k=1)] == [right]


def test_another_day_of_the_month_shares_nothing():
    with MemoryBank(":memory:") as bank:
        bank.add("On 24 March 2025 the mill burnt down.", observed=LONG_AGO)
        assert bank.search("23 March 2025") == []
        assert len(bank.search("What burnt down in March 2025?")) == 1
        assert len(bank.search("24 march")) == 1


def test_a_date_with_its_year_counts_twice():
    with MemoryBank(":memory:") as bank:
        for n in range(50):
            bank.add(f"chatter {n}", observed=LONG_AGO, merge=False)
        earlier = bank.add("We met on 3 May 2024.", observed=LONG_AGO, merge=False)
        asked = bank.add("We met on 3 May 2025.", observed=LONG_AGO, merge=False)
        assert [hit.id for hit in bank.search("3 May 2025", k=2)] == [asked, earlier]
        assert [hit.id for hit in bank.search("May 3rd, 2024", k=2)] == [earlier, asked]


@pytest.mark.parametrize(
    ("query", "rest", "days"),
    [
        ("Who sang on 23 March 2025?", "Who sang on ?", [Day(2025, 3, 23)]),
        (
            "Who sang in March 2025, and who in April?",
            "Who sang in , and who in April?",
            [Day(2025, 3, None)],
        ),
        ("Who sang on May 3rd?", "Who sang on ?", [Day(None, 5, 3)]),
        ("As of 23 March 2025: who sings?", "As of : who sings?", []),
        ("Who sang until the 3rd of May or on 2025-05-04?", "Who sang until the or on ?", [Day(2025, 5, 4)]),
        ("Who may march?", "Who may march?", []),
        (
            "Was it 2025 or 23 degrees, 45 March or 2025-13-40?",
            "Was it 2025 or 23 degrees, 45 March or 2025-13-40?",
            [],
        ),
        ("2025年3月23日谁唱歌？", "谁唱歌？", [Day(2025, 3, 23)]),
        ("2025年12月谁唱歌？", "谁唱歌？", [Day(2025, 12, None)]),
        ("截至2025年3月23日谁唱歌？", "截至 谁唱歌？", []),
    ],
)
def test_only_dates_are_taken_and_bounds_mean_no_day(query, rest, days):
    found = read_dates(query)
    assert " ".join(found.rest.split()) == rest
    assert found.days == days
    assert bool(found.phrases) == (found.rest != query)


@given(st.datetimes(datetime(1971, 1, 2), datetime(2150, 1, 1), timezones=st.just(UTC)))
def test_a_moment_is_on_its_day_and_in_its_month_of_that_year_or_of_any(moment):
    seconds = moment.timestamp()
    for day in (moment.day, None):
        (span,) = Day(moment.year, moment.month, day).spans(0, 0)
        assert span[0] <= seconds < span[1]
        assert datetime.fromtimestamp(span[1], UTC).day == (1 if day is None else (moment + timedelta(1)).day)
        spans = list(Day(None, moment.month, day).spans(seconds - 4e7, seconds + 4e7))
        assert sum(begin <= seconds < end for begin, end in spans) == 1
    assert list(Day(moment.year, 2, 30).spans(0, seconds)) == []


def test_what_was_observed_on_a_day_is_recalled_by_it_though_it_does_not_name_it():
    with MemoryBank(":memory:") as bank:
        begin = datetime(2024, 1, 1, 9, tzinfo=UTC)
        for day in range(100):
            for n in range(3):
                bank.add(
                    f"the heron ate fish {n} of day {day}", observed=begin + timedelta(days=day), merge=False
                )
        hits = bank.search("Which fish did the heron eat on 9 February 2024?", k=6)
        assert {hit.text for hit in hits[:3]} == {f"the heron ate fish {n} of day 39" for n in range(3)}
        assert {hit.observed.month for hit in bank.search("fish in March 2024", k=20)} == {3}
        assert {hit.observed.day for hit in bank.search("2024年2月9日", k=3)} == {9}
        assert {hit.observed.day for hit in bank.search("on February 9th", kinds="task", k=3)} == set()
        bound = bank.search("Which fish did the heron eat as of 9 February 2024?", k=3)
        assert {hit.observed.day for hit in bound} != {9}


def test_a_bank_of_the_first_layout_is_brought_up_to_date(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        bank.add("the heron ate fish", observed=datetime(2024, 2, 9, tzinfo=UTC))
    with sqlite3.connect(path) as connection:
        connection.execute("DROP INDEX records_by_observation")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with MemoryBank(path) as bank:
        assert [hit.text for hit in bank.search("9 February 2024")] == ["the heron ate fish"]
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()

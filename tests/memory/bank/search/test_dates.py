import sqlite3
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.search.dates import Day, read_dates
from scrubjay.memory.bank.search.words import normalise

SPELT = [
    "23 March 2025",
    "23rd of March, 2025",
    "March 23, 2025",
    "Mar. 23rd 2025",
    "23 mar 2025",
    "2025年3月23日",
    "2025 年 3 月 23 号",
    "2025-03-23",
    "2025/3/23",
]
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


def texts(hits):
    return [hit.text for hit in hits]


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
        ("Who may 20 times march 3 miles?", "Who may 20 times march 3 miles?", []),
        ("On March 3 may I go?", "On may I go?", [Day(None, 3, 3)]),
        ("on may 3, march 4 2025 march 5th", "on ,", [Day(None, 5, 3), Day(2025, 3, 4), Day(None, 3, 5)]),
        ("4 March 2024 (2024-03-04)", "( )", [Day(2024, 3, 4)]),
        ("aprıl 5", "aprıl 5", []),
        ("３月５日のこと", "のこと", [Day(None, 3, 5)]),
        (
            "Was it 2025 or 23 degrees, 45 March or 2025-13-40?",
            "Was it 2025 or 23 degrees, 45 March or 2025-13-40?",
            [],
        ),
        ("2025年3月23日谁唱歌？", "谁唱歌？", [Day(2025, 3, 23)]),
        ("2025年12月谁唱歌？", "谁唱歌？", [Day(2025, 12, None)]),
        ("截至2025年3月23日谁唱歌？", "截至 谁唱歌？", []),
        ("3月5日之前谁唱歌？", "之前谁唱歌？", []),
        ("2024年3月5日以后谁唱歌？", "以后谁唱歌？", []),
        ("3月5日后来谁唱歌？", "后来谁唱歌？", [Day(None, 3, 5)]),
    ],
)
def test_only_dates_are_taken_and_bounds_mean_no_day(query, rest, days):
    query = normalise(query)
    found = read_dates(query)
    assert " ".join(found.rest.split()) == normalise(rest)
    assert found.days == days
    assert bool(found.phrases) == (found.rest != query)


ZONES = st.integers(-12, 14).map(lambda hours: timezone(timedelta(hours=hours)))


@given(st.datetimes(datetime(1971, 1, 3), datetime(2150, 1, 1), timezones=ZONES))
def test_a_moment_is_on_its_day_and_in_its_month_of_that_year_or_of_any(moment):
    seconds, zone = moment.timestamp(), moment.tzinfo
    assert zone is not None
    for day in (moment.day, None):
        (span,) = Day(moment.year, moment.month, day).spans(0, 0, zone)
        assert span[0] <= seconds < span[1]
        assert datetime.fromtimestamp(span[1], zone).day == (
            1 if day is None else (moment + timedelta(1)).day
        )
        spans = list(Day(None, moment.month, day).spans(seconds - 4e7, seconds + 4e7, zone))
        assert sum(begin <= seconds < end for begin, end in spans) == 1
    assert list(Day(moment.year, 2, 30).spans(0, seconds, zone)) == []


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
        bank.add("a task", kind="task", observed=begin + timedelta(days=39))
        bank.add("another task", kind="task", observed=begin + timedelta(days=40))
        assert [hit.text for hit in bank.search("on February 9th", kinds="task")] == ["a task"]
        bound = bank.search("Which fish did the heron eat as of 9 February 2024?", k=9)
        assert texts(bound) == texts(bank.search("Which fish did the heron eat?", k=9))


def test_words_beside_a_date_count_and_stop_words_do_not():
    with MemoryBank(":memory:") as bank:
        for n in range(40):
            bank.add(f"What did I do? What did I do on it? I do {n}.", observed=LONG_AGO, merge=False)
        right = bank.add(f"Dentist, paid 40 euros on 5 March {'and more ' * 9}", observed=LONG_AGO)
        assert bank.search("What did I do on 5 March?", k=1)[0].id == right


def test_a_question_may_name_hundreds_of_dates():
    with MemoryBank(":memory:") as bank:
        right = bank.add("It rained.", observed=datetime(2024, 1, 2, tzinfo=UTC))
        named = " ".join(
            f"{1 + n % 28} {'January' if n < 28 else 'May'} {2024 + n // 28}" for n in range(300)
        )
        assert [hit.id for hit in bank.search(f"Did it rain on {named}?")] == [right]


def test_a_day_named_twice_is_one_sign():
    with MemoryBank(":memory:") as bank:
        for day in range(40):
            bank.add(
                f"filler {day}", observed=datetime(2024, 2, 1, tzinfo=UTC) + timedelta(days=day), merge=False
            )
        once, twice, month = (
            {
                hit.text: hit.explanation.from_words
                for hit in bank.search(query, k=40, explain=True)
                if hit.explanation
            }
            for query in ("4 March 2024", "4 March 2024 2024-03-04", "4 March 2024 March 2024")
        )
    assert max(once, key=once.__getitem__) == "filler 32"
    assert twice == once
    assert max(month, key=month.__getitem__) == "filler 32"


def test_days_begin_where_the_clock_is():
    here = timezone(timedelta(hours=8))
    with MemoryBank(":memory:", clock=lambda: datetime(2024, 6, 1, tzinfo=here)) as bank:
        for hour in (-1, 1, 23, 25):
            bank.add(
                f"at {hour}", observed=datetime(2024, 3, 5, tzinfo=here) + timedelta(hours=hour), merge=False
            )
        assert set(texts(bank.search("5 March"))) >= {"at 1", "at 23"}
        assert texts(bank.search("5 March", k=2)) == ["at 23", "at 1"]


def test_a_moment_that_no_calendar_has_is_refused_and_harms_no_search(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        for wrong in (1.7e12, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=r"observed=.*milliseconds"):
                bank.add("a stamp", observed=wrong)
        bank.add("a stamp", namespace=("other",))
        right = bank.add("rain", observed=datetime(2024, 3, 5, tzinfo=UTC), namespace=("mine",))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE records SET observed = 1.7e12 WHERE text = 'a stamp'")
    connection.close()
    with MemoryBank(path) as bank:
        assert [hit.id for hit in bank.search("March 5", namespace=("mine",))] == [right]


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

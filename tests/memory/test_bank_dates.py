import pytest

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank_dates import take_dates

DAYS = [
    "23 March 2025",
    "23rd of March, 2025",
    "March 23, 2025",
    "Mar. 23rd 2025",
    "23 mar 2025",
    "2025年3月23日",
    "2025 年 3 月 23 号",
]


@pytest.mark.parametrize("said", DAYS)
@pytest.mark.parametrize("asked", DAYS[:5])
def test_a_day_is_found_however_it_is_spelt_in_english(said, asked):
    with MemoryBank(":memory:") as bank:
        for other in ("24 March 2025", "March 2025", "23 April 2025", "At 23 we met", "2025年3月24日"):
            bank.add(f"Nothing much happened. {other}.", merge=False)
        right = bank.add(f"It rained {said}, all day.", merge=False)
        found = [hit.id for hit in bank.search(f"As of {asked}: what happened?", k=1)]
    assert (found == [right]) == ("月" not in said)


@pytest.mark.parametrize("said", DAYS[5:])
@pytest.mark.parametrize("asked", DAYS[5:])
def test_a_day_is_found_however_it_is_spelt_in_chinese(said, asked):
    with MemoryBank(":memory:") as bank:
        for other in ("2025年3月24日", "2025年4月23日", "3月2日"):
            bank.add(f"那天没什么事，{other}而已。", merge=False)
        right = bank.add(f"你猜怎么着，{said}小雨下个不停。", merge=False)
        assert [hit.id for hit in bank.search(f"截至{asked}：怎么了？", k=1)] == [right]


def test_another_day_of_the_month_shares_nothing():
    with MemoryBank(":memory:") as bank:
        bank.add("On 24 March 2025 the mill burnt down.")
        assert bank.search("23 March 2025") == []
        assert len(bank.search("What burnt down in March 2025?")) == 1
        assert len(bank.search("24 march")) == 1


def test_a_date_with_its_year_counts_twice():
    with MemoryBank(":memory:") as bank:
        for n in range(50):
            bank.add(f"chatter {n}", merge=False)
        earlier = bank.add("We met on 3 May 2024.", merge=False)
        asked = bank.add("We met on 3 May 2025.", merge=False)
        assert [hit.id for hit in bank.search("3 May 2025", k=2)] == [asked, earlier]
        assert [hit.id for hit in bank.search("May 3rd, 2024", k=2)] == [earlier, asked]


@pytest.mark.parametrize(
    ("query", "rest"),
    [
        ("Who sang on 23 March 2025?", "Who sang on ?"),
        ("Who sang in March 2025, and who in April?", "Who sang in , and who in April?"),
        ("Who may march?", "Who may march?"),
        ("Was it 2025 or 23 degrees?", "Was it 2025 or 23 degrees?"),
        ("2025年3月23日谁唱歌？", "谁唱歌？"),
    ],
)
def test_only_dates_are_taken(query, rest):
    found, left = take_dates(query)
    assert " ".join(left.split()) == rest
    assert bool(found) == (left != query)

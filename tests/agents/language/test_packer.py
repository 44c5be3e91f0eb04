"""Packing of items into a token budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.language.packer import pack
from scrubjay.memory.bank.bank import MemoryBank

ITEMS = st.lists(st.text(alphabet="ab ", min_size=1, max_size=12), max_size=8)


@given(
    ITEMS,
    ITEMS,
    ITEMS,
    st.integers(0, 120),
    st.sampled_from([len, lambda text: len(text.split()), lambda _: 3]),
    st.sampled_from([0, 0, 7, 1000]),
)
def test_whole_items_in_budget_and_a_note_exactly_if_some_are_missing(
    pinned_items, recent_items, recalled_items, budget, count, omitted_turns
):
    try:
        packed = pack(pinned_items, recent_items, recalled_items, budget, count, omitted_turns)
    except ValueError:
        assert sum(map(count, pinned_items)) + 100 > budget
        return
    assert sum(map(count, packed.items)) == packed.tokens <= budget
    assert packed.pinned_items == tuple(pinned_items)
    assert packed.recent_items == tuple(recent_items)[len(recent_items) - len(packed.recent_items) :]
    recent_set = set(packed.recent_items)
    candidates = [item for item in dict.fromkeys(recalled_items) if item not in recent_set]
    assert [item for item in candidates if item in packed.recalled_items] == list(packed.recalled_items)
    missing_turns = omitted_turns + len(recent_items) - len(packed.recent_items)
    assert bool(packed.note) == (missing_turns > 0 or len(packed.recalled_items) < len(candidates))
    assert (f"{missing_turns} earlier turns" in packed.note) == (missing_turns > 0)


def test_all_is_shown_where_it_fits_and_nothing_twice():
    packed = pack(["goal"], ["one", "two"], ["two", "fact", "fact"], 14, len)
    assert packed.items == ("goal", "fact", "one", "two")
    assert packed.tokens == 14


def test_a_long_past_leaves_room_for_what_was_recalled():
    packed = pack(["goal"], [f"turn {i:03}" for i in range(500)], ["the answer"], 200, len)
    assert packed.recalled_items == ("the answer",)
    assert packed.recent_items[-1] == "turn 499"
    assert f"{500 - len(packed.recent_items)} earlier turns" in packed.note
    assert packed.tokens > 200 - len("turn 000")


def test_the_budget_must_hold_what_is_pinned():
    with pytest.raises(ValueError, match="budget=10"):
        pack(["a goal that is long"], [], ["fact"], 10, len)
    with pytest.raises(TypeError, match="int"):
        pack([3], [], [], 10, len)


def test_hits_can_be_packed():
    with MemoryBank(":memory:") as bank:
        bank.add("Ada was born in 1815.")
        (hit,) = bank.search("Ada")
        assert pack(["goal"], [], [hit], 100, len).items == ("goal", hit)

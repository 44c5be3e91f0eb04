"""The rule for facts that change: which hits of a search a newer hit supersedes."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.search.changes import EXTRA_HITS, find_changes, order_by_changes

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "changes.jsonl").read_text().splitlines()]
OLD, NEW = "2025-01-01", "2025-06-01"


def add_pair(bank, older="Works at Acme.", newer="Works at Globex.", old=None, new=None):
    """Add two records; `old` and `new` are further arguments of `add`."""
    first = bank.add(older, observed=OLD, merge=False, **(old or {}))
    return first, bank.add(newer, observed=NEW, merge=False, **(new or {}))


def marks(hits):
    return {hit.id: hit.superseded_by for hit in hits if hit.superseded_by}


def is_superseded(bank, older, newer):
    ids = add_pair(bank, older, newer)
    records = [bank.get(id) for id in ids]
    changes = find_changes(records)
    for id in ids:
        bank.forget(id)
    assert changes in ({}, {0: 1})
    return bool(changes)


def test_the_rule_is_precise_on_held_back_pairs(bank):
    changes = [pair for pair in PAIRS if is_superseded(bank, pair["older"], pair["newer"])]
    right = [pair for pair in changes if pair["supersedes"]]
    positives = sum(pair["supersedes"] for pair in PAIRS)
    assert min(positives, len(PAIRS) - positives) > 150
    print(f"precision {len(right)}/{len(changes)}, recall {len(right)}/{positives}")
    assert len(right) >= 0.95 * len(changes)
    assert len(right) >= 0.5 * positives


def test_the_newer_fact_stands_first_and_the_older_one_is_marked(bank):
    old, new = add_pair(bank)
    other = bank.add("Works of Acme fill the museum, works of Acme.", observed=OLD)
    hits = bank.search("works at Acme")
    assert marks(hits) == {old: new}
    order = [hit.id for hit in hits]
    assert order.index(new) + 1 == order.index(old)
    assert {*order} == {old, new, other}
    plain = bank.search("works at Acme", changes=False)
    assert plain[0].id == old
    assert not marks(plain)
    scores = {hit.id: hit.score for hit in plain}
    assert all(hit.score == scores[hit.id] for hit in hits)


def test_a_newer_fact_below_the_last_requested_hit_takes_the_place_of_the_older_one(bank):
    kind = {"kind": "knowledge"}  # without the scores of adjacent turns
    old, new = add_pair(bank, old=kind, new=kind)
    for number in range(EXTRA_HITS - 1):
        bank.add(f"The works {number} are closed.", observed=OLD, **kind)
    (hit,) = bank.search("Acme works", k=1, changes=False)
    assert hit.id == old
    (hit,) = bank.search("Acme works", k=1)
    assert (hit.id, hit.superseded_by) == (new, None)


def test_a_search_at_a_date_before_the_change_returns_the_old_fact_unmarked(bank):
    old, new = add_pair(bank)
    (hit,) = bank.search("works", at="2025-03-01")
    assert (hit.id, hit.superseded_by) == (old, None)
    assert marks(bank.search("works", at="2025-07-01")) == {old: new}


def test_a_repeated_fact_is_true_again_but_not_before_its_repetition(bank):
    old, new = add_pair(bank)
    assert bank.add("Works at Acme.", observed="2025-09-01") == old  # merged
    assert marks(bank.search("works")) == {new: old}
    assert marks(bank.search("works", at="2025-08-01")) == {old: new}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"namespace": ("ada",)}, {"namespace": ("ben",)}),
        ({"namespace": ("ada",)}, {"namespace": ("ada", "work")}),
        ({"kind": "conversation"}, {"kind": "knowledge"}),
        ({"speaker": "Ada"}, {"speaker": "Ben"}),
        ({}, {"speaker": "Ben"}),
        ({"trust": "user"}, {"trust": "agent"}),
        ({"trust": "user"}, {"trust": "tool"}),
        ({"trust": "agent"}, {"trust": "tool"}),
        ({"valid_from": "2025-08-01"}, {}),
    ],
)
def test_other_owners_kinds_speakers_and_lower_trust_supersede_nothing(bank, old, new):
    add_pair(bank, old=old, new=new)
    hits = bank.search("works")
    assert len(hits) == 2
    assert not marks(hits)


def test_a_statement_in_the_first_person_is_about_its_author(bank):
    add_pair(bank, "I live in Lyon.", "I live in Nice.", {"trust": "agent"}, {"trust": "user"})
    assert not marks(bank.search("live"))
    old, new = add_pair(bank, "Vera lives in Lyon.", "Vera lives in Nice.", {"trust": "agent"})
    assert marks(bank.search("Vera lives")) == {old: new}


@pytest.mark.parametrize(
    "newer",
    [
        "Does Vera live in Nice?",
        "Vera might move to Nice.",
        "Vera also lives in Nice.",
        "Vera lived in Nice in 2010.",
        "Ben said Vera lives in Nice.",
        "Vera lives in France.",
        "Max lives in Nice.",
        "She is tired. Lives in Nice.",
    ],
)
def test_doubt_stops_the_rule(bank, newer):
    assert not is_superseded(bank, "Vera lives in Lyon.", newer)


def test_two_brothers_in_two_cities_stay(bank):
    for older, newer in itertools.permutations(
        ("My brother lives in Rome.", "My brother lives in Oslo.", "My brother Max lives in Bonn."), 2
    ):
        assert not is_superseded(bank, older, newer)


def test_a_record_with_another_fact_that_still_holds_is_not_superseded(bank):
    older = "I live in Lyon. My favorite color is blue."
    assert not is_superseded(bank, older, "I live in Nice.")
    assert is_superseded(bank, older, "I live in Nice. My favorite color is red.")


def test_equal_times_supersede_nothing(bank):
    for city in ("Lyon", "Nice"):
        bank.add(f"Vera lives in {city}.", observed=OLD)
    assert not marks(bank.search("Vera"))


def test_a_foreign_bank_compares_its_records_as_texts_of_tools(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        old, new = add_pair(bank, old={"trust": "user"}, new={"trust": "tool"})
        assert not marks(bank.search("works"))
    with MemoryBank(path, foreign=True) as bank:
        hits = bank.search("works")
        assert marks(hits) == {old: new}
        assert {hit.trust for hit in hits} == {"tool"}


def test_a_search_changes_no_byte_of_the_file(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        old, new = add_pair(bank)
    before = path.read_bytes()
    with MemoryBank(path) as bank:
        assert marks(bank.search("works")) == {old: new}
        record = bank.get(old)
        assert record is not None
        assert record.valid_to is None
    assert path.read_bytes() == before


FACTS = st.tuples(
    st.sampled_from(
        ["I live in Lyon.", "I live in Nice.", "I live in Bonn.", "I no longer live in Lyon.", "Ok."]
    ),
    st.integers(1, 9),
    st.sampled_from(["user", "agent", "tool"]),
)


@given(st.lists(FACTS, max_size=6))
def test_the_order_keeps_all_hits_and_puts_each_superseded_one_behind(facts):
    with MemoryBank(":memory:") as bank:
        for text, day, trust in facts:
            bank.add(text, observed=f"2025-01-0{day}", trust=trust, merge=False)
        plain = bank.search("live in ok", k=20, changes=False, by="words")
        hits = order_by_changes(plain)
        assert sorted(hit.id for hit in hits) == sorted(hit.id for hit in plain)
        place = {hit.id: index for index, hit in enumerate(hits)}
        by_id = {hit.id: hit for hit in hits}
        for hit in hits:
            if hit.superseded_by:
                newer = by_id[hit.superseded_by]
                assert place[newer.id] < place[hit.id]
                assert newer.observed > hit.observed
                assert newer.trust == hit.trust
        others = [hit.id for hit in hits if hit.id not in marks(hits) and hit.id not in marks(hits).values()]
        assert others == [hit.id for hit in plain if hit.id in others]

"""What words and embeddings find together, and in what order."""

from datetime import timedelta

import pytest

from scrubjay.memory import MemoryBank

DAY = timedelta(days=1)


def why(hit):
    assert hit.explanation is not None
    return hit.explanation


def test_words_and_embeddings_both_nominate_and_the_explanation_adds_up(letters, clock):
    with MemoryBank(":memory:", letters, clock=clock, dense_weight=1.5) as bank:
        for text in ("ocelot", "a dog", "tool ecology"):
            bank.add(text)
            clock.now += DAY
        hits = {hit.text: hit for hit in bank.search("ocelot dogs", explain=True)}
        assert why(hits["a dog"]).keyword_rank is not None
        assert why(hits["tool ecology"]).keyword_rank is None
        assert why(hits["tool ecology"]).dense_rank is not None
        for hit in hits.values():
            found = why(hit)
            total = found.from_words + found.from_embeddings
            assert hit.score == pytest.approx(total * found.recency * found.importance)
        assert bank.search("ocelot")[0].explanation is None


def test_recency_and_importance_move_a_record_by_few_places(bank, clock):
    old = bank.add("the red boat sails")
    clock.now += 4000 * DAY
    for colour in ("blue", "grey", "pink", "brown", "black", "white"):
        bank.add(f"the {colour} boat sails")
        clock.now += timedelta(hours=1)
    assert bank.search("boat")[-1].id == old
    assert [hit.id for hit in bank.search("red boat")].index(old) <= 2
    grave = bank.add("the green boat sails", importance=1.0)
    assert bank.search("boat")[0].id == grave


def test_a_reply_is_found_by_its_question_in_the_same_segment_only(bank, clock):
    bank.add("Shall we paint the fence?")
    reply = bank.add("Gladly, on Sunday.")
    clock.now += DAY
    other = bank.add("Gladly, some time.")
    found = [hit.id for hit in bank.search("fence")]
    assert reply in found
    assert other not in found


def test_what_was_forgotten_leaves_no_trace_in_how_sure_words_are(clock):
    banks = MemoryBank(":memory:", clock=clock), MemoryBank(":memory:", clock=clock)
    with banks[0], banks[1]:
        gone = [banks[1].add(f"filler number {n}", kind="task") for n in range(40)]
        for bank in banks:
            for text in ("the heron nests", "a boat", "a late boat", "an oar", "the mill"):
                bank.add(text, merge=False)
        for id in gone:
            banks[1].forget(id)
        never, after = ([(h.text, h.score) for h in bank.search("heron boat")] for bank in banks)
    assert never == after

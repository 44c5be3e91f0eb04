"""Tables of recall: shares, misleading records and means, by hand."""

from pathlib import Path

import pytest

pytest.importorskip("langchain_core")

from scrubjay.experiments.language.conversations import ABILITIES, LANGUAGES, Conversation, Question
from scrubjay.experiments.quality import recall
from scrubjay.experiments.quality.recall import Answered, RecallBench, ask, details, mean_recall, overview


def answered(places, answers=(1,), outdated=(), ability=ABILITIES[0]):
    return Answered(Question("?", frozenset(answers), ability, outdated=frozenset(outdated)), list(places))


def test_recall_is_the_share_of_needed_records_so_far_down():
    one = answered([7, 1, 8, 2], answers=(1, 2, 3, 4))
    assert [one.recall(depth) for depth in (1, 2, 3, 4, 20)] == [0, 0.25, 0.25, 0.5, 0.5]
    assert mean_recall([one, answered([1])], 2) == pytest.approx((0.25 + 1) / 2)


@pytest.mark.parametrize(
    ("places", "misled"),
    [([5, 1], True), ([1, 5], False), ([9, 5], True), ([9, 8], False), ([], False)],
)
def test_an_outdated_record_misleads_if_none_that_holds_stands_above_it(places, misled):
    assert answered(places, answers=(1,), outdated=(5,)).misleads is misled


def test_every_question_is_asked_as_deep_as_the_deepest_table():
    depths = []

    def arm(conversation, embeddings):
        return lambda question, k: depths.append(k) or list(range(k))

    question = Question("?", frozenset({3}), "stated")
    found = ask(arm, [Conversation((), (question,) * 2), Conversation((), (question,))], None)  # pyright: ignore[reportArgumentType]
    assert [len(one) for one in found] == [2, 1]
    assert set(depths) == {max(recall.DEPTHS)}
    assert found[0][0].recall(5) == 1


def test_tables_have_a_row_for_each_way_and_means_by_hand():
    found = [[answered([1]), answered([5, 1], outdated=(5,))], [answered([9])]]
    results = {"ours": {"made": found, "BFCL": [[answered([1], ability="customer")]]}}
    head, _, row = overview(results).splitlines()
    assert head == "| recall @5, @10, @20 | made | BFCL |"
    assert row == "| ours | 0.667 0.667 0.667 | 1.000 1.000 1.000 |"


def test_details_tell_the_range_over_seeds_and_how_often_one_is_misled():
    def conversation(right):
        return [answered([1] if right else [9], ability=ability) for ability in ABILITIES]

    found = [conversation(True), [*conversation(False), answered([5, 1], outdated=(5,))]]
    *_, row = details({"ours": {"made": found}}, "made").splitlines()
    cells = row.strip("| ").split(" | ")
    share = 1 / (len(ABILITIES) + 1)
    assert cells[:2] == ["ours", f"{share:.3f} to 1.000"]
    assert cells[2:-1] == ["0.67", *["0.50"] * (len(ABILITIES) - 1)]
    assert cells[-1] == "1/1"


def test_published_sets_are_read_where_they_are_named(monkeypatch, tmp_path):
    read = []

    def reader(name):
        return lambda *paths: read.append((name, *paths)) or [Conversation((), ())]

    for name in ("read_bfcl", "read_locomo", "read_memdaily"):
        monkeypatch.setattr(recall, name, reader(name))
    plain = [corpus.name for corpus in recall.corpora(RecallBench(seeds=(1, 2), turns=400))]
    made = [f"made, {language}" for language in LANGUAGES]
    assert plain == [*made, *(f"{name}, in one bank" for name in made), "BFCL"]
    assert read == [("read_bfcl",)]
    bench = RecallBench(seeds=(1,), turns=400, locomo=Path("l.json"), memdaily=Path("m"))
    assert [corpus.name for corpus in recall.corpora(bench)][-2:] == ["LoCoMo", "MemDaily, zh"]
    assert read[2:] == [("read_locomo", Path("l.json")), ("read_memdaily", Path("m"))]

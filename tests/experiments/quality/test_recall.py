"""Tables of recall: shares, misleading records and means, by hand."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding

from scrubjay.experiments.answers.datasets import PARTS
from scrubjay.experiments.lm.conversations import (
    ABILITIES,
    LANGUAGES,
    Conversation,
    Question,
    Turn,
    generate_conversation,
)
from scrubjay.experiments.quality import recall
from scrubjay.experiments.quality.recall import (
    RecallBench,
    Retrieval,
    ask,
    concatenate,
    corpus_table,
    details,
    groups,
    margins,
    mean,
    overview,
)


def retrieval(places, answers=(1,), outdated_places=(), ability=ABILITIES[0]):
    return Retrieval(
        Question("?", frozenset(answers), ability, outdated_answers=frozenset(outdated_places)), list(places)
    )


def test_recall_is_the_share_of_needed_records_so_far_down():
    one = retrieval([7, 1, 8, 2], answers=(1, 2, 3, 4))
    assert [one.recall(depth) for depth in (1, 2, 3, 4, 20)] == [0, 0.25, 0.25, 0.5, 0.5]
    assert mean("@5", [[one], [retrieval([1])]]) == pytest.approx((0.5 + 1) / 2)


def test_the_first_needed_record_and_the_last_one_have_a_measure():
    """The reciprocal rank is that of the first needed record; a perfect reader needs all of them in ten."""
    one = retrieval([7, 1, *range(20, 27), 2], answers=(1, 2))
    assert (one.reciprocal_rank, one.is_complete) == (0.5, True)
    late = retrieval([1, *range(20, 29), 2], answers=(1, 2))
    assert (late.reciprocal_rank, late.is_complete) == (1.0, False)
    assert retrieval([7, 8]).reciprocal_rank == 0
    assert mean("MRR", [[one, late], [retrieval([])]]) == pytest.approx(0.5)
    assert mean("perfect reader", [[one, late], [retrieval([])]]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("places", "misleads"),
    [([5, 1], True), ([1, 5], False), ([9, 5], True), ([9, 8], False), ([], False)],
)
def test_an_outdated_record_misleads_if_none_that_holds_stands_above_it(places, misleads):
    assert retrieval(places, answers=(1,), outdated_places=(5,)).misleads is misleads


def test_every_question_is_asked_as_deep_as_the_deepest_table():
    depths = []

    def arm(conversation, embeddings):
        return lambda question, k: depths.append(k) or list(range(k))

    question = Question("?", frozenset({3}), "stated")
    retrievals = ask(arm, [Conversation((), (question,) * 2), Conversation((), (question,))], None)  # pyright: ignore[reportArgumentType]
    assert [len(one) for one in retrievals] == [2, 1]
    assert set(depths) == {max(recall.DEPTHS)}
    assert retrievals[0][0].recall(5) == 1


def test_public_and_own_sets_have_tables_of_their_own_with_means_by_hand():
    retrievals = [[retrieval([1]), retrieval([5, 1], outdated_places=(5,))], [retrieval([9])]]
    public = {"BFCL": [[retrieval([1], ability="customer")]], "LoCoMo": [[retrieval([9])]]}
    results = {recall.BANK: {"synthetic, en": retrievals, **public}}
    assert groups(results) == {"Public sets": ["BFCL", "LoCoMo"], "Self-made sets": ["synthetic, en"]}
    head, _, row = overview(results, ["BFCL", "LoCoMo"]).splitlines()
    assert head == "| mean of 2 sets | MRR | @5 | @10 | @20 | perfect reader |"
    assert row == f"| {recall.BANK} | {' | '.join(['0.500'] * 5)} |"
    _, _, row = overview(results, ["synthetic, en"]).splitlines()
    assert row == f"| {recall.BANK} | 0.500 | 0.667 | 0.667 | 0.667 | 0.667 |"


def test_a_bank_is_compared_with_what_was_best_on_the_development_part():
    right, wrong = [retrieval([1])] * 30, [retrieval([9])] * 30
    half = [retrieval([1 if number % 2 else 9]) for number in range(30)]
    late = [retrieval([9, 8, 1])] * 30
    # On the development part cosine recalls more, and bm25s stands higher; on the test part it is reversed.
    development = {"cosine": {"talk": [late]}, "bm25s": {"talk": [half]}}
    results = {"cosine": {"talk": [half]}, "bm25s": {"talk": [right]}, recall.BANK: {"talk": [right]}}
    *_, row = margins(results, development, ["talk"]).splitlines()
    cells = row.strip("| ").split(" | ")
    assert cells[:2] == ["talk", "+0.000 (+0.000 to +0.000), bm25s"]
    for cell in cells[2:]:
        numbers, name = cell.split(", ")
        more, low, high = (float(number.strip("()")) for number in numbers.replace("to", "").split())
        assert (name, more) == ("cosine", 0.5)
        assert 0.2 < low < 0.4
        assert 0.6 < high < 0.8
    results[recall.BANK] = {"talk": [wrong]}
    lines = corpus_table(results, "talk").splitlines()
    assert lines[0].endswith("| MRR of the bank minus this | @10 of the bank minus this |")
    assert lines[3].startswith("| bm25s | 1.000 ")
    assert lines[3].endswith(" | -1.000 (-1.000 to -1.000) | -1.000 (-1.000 to -1.000) |")
    assert lines[4].endswith(" | - | - |")


def test_details_tell_the_range_over_seeds_and_how_often_one_is_misled():
    def conversation(right):
        return [retrieval([1] if right else [9], ability=ability) for ability in ABILITIES]

    retrievals = [conversation(True), [*conversation(False), retrieval([5, 1], outdated_places=(5,))]]
    *_, row = details({"ours": {"made": retrievals}}, "made").splitlines()
    cells = row.strip("| ").split(" | ")
    share = 1 / (len(ABILITIES) + 1)
    assert cells[:2] == ["ours", f"{share:.3f} to 1.000"]
    assert cells[2:-1] == ["0.67", *["0.50"] * (len(ABILITIES) - 1)]
    assert cells[-1] == "1/1"


SETS = {
    "memdaily": "MemDaily, zh",
    "locomo": "LoCoMo",
    "realtalk": "REALTALK",
    "beam": "BEAM-100K",
    "longmemeval": "LongMemEval",
    "agentbench": "MemoryAgentBench",
}
QUESTIONS = (Question("?", frozenset({0}), "stated"), Question("?", frozenset(), "stated", references=("a",)))


@pytest.mark.parametrize("part", PARTS)
def test_published_sets_are_read_where_they_are_named_and_only_in_part(monkeypatch, part):
    read = []

    def reader(name, set):
        listed_name = (
            recall.part_names(set, part)[0] if set in ("BFCL", "LoCoMo", "REALTALK", "BEAM-100K") else ""
        )
        names = [listed_name] if listed_name else [f"q{number}" for number in range(9)]

        def reads(*paths):
            read.append((name, *paths))
            return [Conversation((), QUESTIONS, name) for name in names]

        return reads

    monkeypatch.setattr(recall, "read_bfcl", reader("bfcl", "BFCL"))
    monkeypatch.setattr(recall, "read_memdaily", reader("memdaily", "MemDaily"))
    monkeypatch.setattr(recall, "READERS", {name: reader(name, set) for name, set in SETS.items()})
    plain = list(recall.corpora(RecallBench(turns=400), part))
    synthetic = [f"synthetic, {language}" for language in LANGUAGES]
    assert plain == [*synthetic, *(f"{name}, in one bank" for name in synthetic), "BFCL"]
    assert read == [("bfcl",)]
    paths: dict[str, Any] = {name: Path(name) for name in SETS}
    paths["agentbench"] = Path("a"), Path("b")
    corpora = recall.corpora(RecallBench(turns=400, **paths), part)
    assert list(corpora)[len(plain) :] == list(SETS.values())
    assert read[2] == ("memdaily", Path("memdaily"), recall.part_names("MemDaily", part))
    assert read[-2:] == [("agentbench", Path("a")), ("agentbench", Path("b"))]
    for name in ("LongMemEval", "MemoryAgentBench"):
        assert 0 < len({one.name for one in corpora[name]}) < 9
        assert {one.questions for one in corpora[name]} == {QUESTIONS[:1]}


def test_the_command_measures_the_baselines_and_names_what_is_amiss(tmp_path, monkeypatch, capsys):
    sample = {
        "conversation": {
            "session_1_date_time": "1:30 pm on 8 May, 2023",
            "session_1": [
                {"dia_id": f"D1:{number}", "speaker": "Ada", "text": text}
                for number, text in enumerate(["The kite was red.", "Rain came at noon.", "We ate pie."])
            ],
        },
        "qa": [{"question": "Which colour had the kite?", "evidence": ["D1:0"], "category": 4}],
    }
    samples = [{**sample, "sample_id": f"conv-{name}"} for name in ("26", "30")]
    (tmp_path / "locomo.json").write_text(json.dumps(samples))
    synthetic = Conversation(
        tuple(Turn(text, datetime(2025, 1, 1, tzinfo=UTC)) for text in ("A kite.", "A car.")),
        tuple(
            Question("kite", frozenset({0}), ability, outdated_answers=frozenset({1}))
            for ability in ABILITIES
        ),
        "customer",
    )
    monkeypatch.setattr(recall, "generate_conversation", lambda *_: synthetic)
    monkeypatch.setattr(recall, "read_bfcl", lambda: [synthetic, replace(synthetic, name="finance")])
    monkeypatch.setattr(recall, "make_embeddings", lambda name: DeterministicFakeEmbedding(size=8))
    words = ["--cache", str(tmp_path / "v.db"), "--part", "test", "--locomo"]
    assert recall.main([*words, str(tmp_path / "locomo.json")]) == 0
    out = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| ") for line in out.splitlines() if line.startswith("|")}
    assert {*recall.BASELINES, recall.BANK} - {"bm25s"} <= rows
    assert {"LoCoMo", "BFCL", "synthetic, en"} <= rows
    assert re.findall("^## (.*)", out, re.MULTILINE) == ["Public sets", "Self-made sets", "Questions by type"]
    assert recall.main([*words, str(tmp_path / "missing.json")]) == 2
    assert "missing.json" in capsys.readouterr().err


def test_conversations_in_one_keep_what_each_question_means():
    apart = [generate_conversation("en", seed, 400) for seed in (1, 2)]
    whole = concatenate(apart)
    assert len(whole.turns) == sum(len(one.turns) for one in apart)
    questions = iter(whole.questions)
    begin = 0
    for one in apart:
        for place, turn in enumerate(one.turns):
            copy = whole.turns[begin + place]
            assert (copy.text, copy.observed) == (turn.text, turn.observed)
            if turn.replaces is not None:
                assert copy.replaces is not None
                assert whole.turns[copy.replaces].text == one.turns[turn.replaces].text
        for question in one.questions:
            copy = next(questions)
            assert (copy.text, copy.ability, copy.at) == (question.text, question.ability, question.at)
            for now, before in (
                (copy.answers, question.answers),
                (copy.outdated_answers, question.outdated_answers),
            ):
                assert {whole.turns[i].text for i in now} == {one.turns[i].text for i in before}
        begin += len(one.turns)
    assert next(questions, None) is None

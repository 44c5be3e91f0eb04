"""Conversations of hundreds of turns: bounded in cost, recalled to their beginning, gone on with."""

from __future__ import annotations

import json

import pytest

from scrubjay.experiments.lm.conversations import generate_reminders
from scrubjay.experiments.quality import conversation
from scrubjay.experiments.quality.conversation import ConversationBench, names_value, run

ASKED = (10, 40, 80, 120, 150)


def options(out, **changes):
    # A token of the small model is a byte: all is some four times as long as it would be.
    sizes = {"budget": 1600, "prompt_tokens": 1400, "max_tokens": 2, "turns": 150, "question_turns": ASKED}
    return ConversationBench(
        **{**sizes, "save_every": 7, "recall_seeds": 0, "quiet": True, "out": out, **changes}
    )


def read(out, name):
    """Return the records without what depends on the machine."""
    lines = (out / f"{name}-0.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("cpu", "resident")} for line in lines]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("seed", range(5))
def test_a_fact_is_told_once_and_asked_for_once(language, seed):
    talk, reminders = generate_reminders(language, seed, 200, 2, [9, 49, 99, 149, 199])
    assert [reminder.fact_turn for reminder in reminders] == [2, 3, 4, 5, 6]
    assert [reminder.question_turn for reminder in reminders] == [199, 149, 99, 49, 9]
    assert len(talk.turns) == 200
    texts = [turn.text for turn in talk.turns]
    for reminder in reminders:
        about = [place for place, text in enumerate(texts) if reminder.who in text and reminder.value in text]
        assert about == [reminder.fact_turn]
        assert reminder.who in texts[reminder.question_turn]
    # And small talk names the person, or his name alone would find the facts.
    places = {place for reminder in reminders for place in (reminder.fact_turn, reminder.question_turn)}
    assert any(reminders[0].who in text for place, text in enumerate(texts) if place not in places)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"turns": 100}, "at least 136"),
        ({"question_turns": (3, 50)}, "distinct"),
        ({"question_turns": (50, 50)}, "distinct"),
        ({"question_turns": (50, 500)}, "distinct"),
        ({"question_turns": tuple(range(100, 140))}, "a different type of fact"),
    ],
)
def test_places_that_cannot_be_are_named(places, words):
    with pytest.raises(ValueError, match=words):
        generate_reminders("en", 0, **{"turns": 200, "fact_turn": 2, "question_turns": (9, 50), **places})


@pytest.fixture(scope="module")
def whole(tiny_chat, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    table, picture = run(options(out, methods=("words-alone", "sinks", "full")), "command", tiny_chat)
    return out, table.read_text(), picture


@pytest.mark.slow
def test_turns_cost_the_same_and_the_first_facts_come_back(whole):
    out, table, picture = whole
    rows = read(out, "words-alone")
    assert len(rows) == 150
    assert max(row["prompt_tokens"] for row in rows) < 1500  # the budget, and what the template adds
    early, late = (sum(row["cache_bytes"] for row in part) for part in (rows[20:50], rows[-30:]))
    assert late < 1.2 * early
    assert all(row["read_tokens"] < row["prompt_tokens"] for row in rows[1:])
    answers = [row for row in rows if "told" in row]
    assert [(row["turn"], row["told"]) for row in answers] == list(zip(ASKED, (7, 6, 5, 4, 3), strict=True))
    # Words alone do not find all: a question has none but a name in common with what answers it.
    assert sum(row["in_view"] for row in answers) >= 3
    assert picture.stat().st_size > 10_000
    assert "| 150, stated at 3 |" in table


@pytest.mark.slow
def test_a_cache_alone_forgets_or_ends(whole):
    out, table, _ = whole
    sinks, full = read(out, "sinks"), read(out, "full")
    assert not [row for row in sinks if "told" in row][-1]["in_view"]
    # A turn reads only what is new, however long the text.
    assert sinks[-1]["prompt_tokens"] > 10 * max(row["read_tokens"] for row in sinks)
    assert "ended" in full[-1]
    assert full[-2]["cache_bytes"] > 10 * full[0]["cache_bytes"]
    assert f"full, seed 0, ended at turn {len(full)}: the prompt has" in table


@pytest.mark.one_in(2)
@pytest.mark.slow
@pytest.mark.parametrize("method", ["words-alone", "sinks"])
def test_a_killed_conversation_goes_on_to_the_same_records(whole, tiny_chat, tmp_path, monkeypatch, method):
    turn = conversation._turn

    def interrupt_at_45(options, name, speaker, talk, reminders, place, records):
        if place == 45:
            raise KeyboardInterrupt
        return turn(options, name, speaker, talk, reminders, place, records)

    bench = options(tmp_path, methods=(method,))
    with monkeypatch.context() as patch:
        patch.setattr(conversation, "_turn", interrupt_at_45)
        with pytest.raises(KeyboardInterrupt):
            run(bench, "command", tiny_chat)
    assert len(read(tmp_path, method)) == 45
    assert [path.name for path in tmp_path.glob("*-at-*")] == [f"{method}-0-at-000042"]
    run(bench, "command", tiny_chat)
    assert read(tmp_path, method) == read(whole[0], method)
    assert not list(tmp_path.glob("*-at-*"))
    with pytest.raises(ValueError, match="budget=1600, now 1700"):
        run(options(tmp_path, budget=1700), "command", tiny_chat)


def test_a_bank_finds_the_first_facts_among_hundreds_of_turns(tmp_path):
    rankings = [conversation.rank_facts(options(tmp_path), "words-alone", seed) for seed in range(3)]
    assert all(set(places) == set(ASKED) for places in rankings)
    # By chance one of fifteen facts would be among six of a hundred turns.
    assert sum(place <= 6 for places in rankings for place in places.values()) >= 10


@pytest.mark.parametrize(
    ("answer", "names_it"), [("A RED Saab!", True), ("Saab", False), ("the red Saab", True), ("", False)]
)
def test_an_answer_names_a_value_whatever_its_article(answer, names_it):
    assert names_value(answer, "a red Saab") is names_it

"""Conversations of hundreds of turns: their cost is bounded, their beginning is recalled, and they go on when stopped."""

from __future__ import annotations

import json

import pytest

from scrubjay.experiments.bench import conversation
from scrubjay.experiments.bench.conversation import ConversationBench, Speaker, names, run
from scrubjay.experiments.conversations import remind
from scrubjay.experiments.progress import ProgressDisplay

ASKED = (10, 50, 100, 150, 200)


def options(tmp_path, **given):
    # A token of this model is a byte, so everything is some four times as long.
    sizes = {"budget": 2400, "prompt_tokens": 2000, "max_tokens": 4, "quiet": True, "save_every": 3}
    return ConversationBench(**{**sizes, "out": tmp_path / "out", **given})


def rows(out, name):
    """Return the records without what depends on the machine."""
    machine = ("cpu", "resident")
    lines = (out / f"{name}-0.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in machine} for line in lines]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("seed", range(5))
def test_a_fact_is_told_once_and_asked_for_once(language, seed):
    talk, reminders = remind(language, seed, 200, 2, [turn - 1 for turn in ASKED])
    assert [reminder.told for reminder in reminders] == [2, 3, 4, 5, 6]
    assert [reminder.asked for reminder in reminders] == [199, 149, 99, 49, 9]
    assert len(talk.turns) == 200
    for reminder in reminders:
        assert reminder.value in talk.turns[reminder.told].text
        assert reminder.value not in talk.turns[reminder.asked].text
    (who,) = set.intersection(
        *(
            {word for word in _words(talk.turns[place].text, language)}
            for r in reminders
            for place in (r.told, r.asked)
        )
    ) - {"the"}
    # Small talk names the person, and nothing else is told of him.
    places = {place for r in reminders for place in (r.told, r.asked)}
    others = [turn.text for place, turn in enumerate(talk.turns) if place not in places and who in turn.text]
    assert others
    assert not any(r.value in text for r in reminders for text in others)

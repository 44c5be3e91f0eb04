"""Sets of questions: what files say is where the conversation says it."""

import json
from datetime import UTC, datetime, timedelta

from scrubjay.experiments.language.conversations import converse
from scrubjay.experiments.quality import sets
from scrubjay.experiments.quality.sets import in_one, read_locomo, read_memdaily


def test_conversations_in_one_keep_what_each_question_means():
    apart = [converse("en", seed, 400) for seed in (1, 2)]
    whole = in_one(apart)
    assert len(whole.turns) == sum(len(one.turns) for one in apart)
    questions = iter(whole.questions)
    begin = 0
    for one in apart:
        for place, turn in enumerate(one.turns):
            moved = whole.turns[begin + place]
            assert (moved.text, moved.observed) == (turn.text, turn.observed)
            if turn.replaces is not None:
                assert moved.replaces is not None
                assert whole.turns[moved.replaces].text == one.turns[turn.replaces].text
        for question in one.questions:
            moved = next(questions)
            assert (moved.text, moved.ability, moved.at) == (question.text, question.ability, question.at)
            for now, before in ((moved.answers, question.answers), (moved.outdated, question.outdated)):
                assert {whole.turns[i].text for i in now} == {one.turns[i].text for i in before}
        begin += len(one.turns)
    assert next(questions, None) is None


def test_locomo_leaves_out_what_has_no_answer_or_evidence(tmp_path):
    def turn(number, text, **more):
        return {"dia_id": f"D1:{number}", "speaker": "Ada", "text": text, **more}

    sample = {
        "conversation": {
            "session_1_date_time": "1:30 pm on 8 May, 2023",
            "session_1": [turn(1, "Hello."), turn(2, "Look!", blip_caption="a red kite")],
        },
        "qa": [
            {"question": "What flew?", "evidence": ["D1:2; D9:9"], "category": 4},
            {"question": "When?", "evidence": ["D1:1", "D1:2"], "category": 2},
            {"question": "Nobody said?", "evidence": ["D1:1"], "category": 5},
            {"question": "No evidence?", "category": 1},
        ],
    }
    (tmp_path / "locomo.json").write_text(json.dumps([sample]))
    (conversation,) = read_locomo(tmp_path / "locomo.json")
    assert [one.text for one in conversation.turns] == ["Ada: Hello.", "Ada: Look! [a red kite]"]
    began = datetime(2023, 5, 8, 13, 30, tzinfo=UTC)
    assert [one.observed for one in conversation.turns] == [began, began + timedelta(seconds=30)]
    told = [(one.text, one.answers, one.ability) for one in conversation.questions]
    assert told == [
        ("What flew?", {1}, "single-hop"),
        ("When?", {0, 1}, "temporal"),
    ]


def test_memdaily_pools_trajectories_that_recall_was_not_tuned_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "_MEMDAILY_POOL", 2)
    monkeypatch.setattr(sets, "_MEMDAILY_TUNED", 3)
    trajectories = [
        {
            "message_list": [
                {"message": f"{number}: {word}", "time": "'2024年07月05日08:30'"} for word in "ab"
            ],
            "question_list": [{"question": f"{number}?", "target_step_id": [1, 7]}],
        }
        for number in range(8)
    ]
    (tmp_path / "x_simple.json").write_text(json.dumps(trajectories))
    drawn = list(read_memdaily(tmp_path))
    assert [len(one.turns) for one in drawn] == [4, 2]
    numbers = set()
    for conversation in drawn:
        for question in conversation.questions:
            (place,) = question.answers  # the step that is not there is left out
            number = question.text.removesuffix("?")
            assert conversation.turns[place].text == f"{number}: b"
            assert question.ability == "simple"
            numbers.add(number)
    assert len(numbers) == 3
    assert drawn == list(read_memdaily(tmp_path))

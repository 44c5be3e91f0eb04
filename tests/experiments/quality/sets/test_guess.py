"""Files of any set: known by what they look like, with their answers, and a line on what is none."""

import json
from pathlib import Path

import pytest

from scrubjay.experiments.quality.sets.guess import READERS, guess, read_any
from scrubjay.experiments.words.failures import UsageError

from .test_form import (
    AGENTBENCH,
    LOCOMO,
    LONGMEMEVAL,
    PROBES,
    QA,
    REALTALK,
    TRAJECTORIES,
    put,
    put_beam,
    spoiled,
)

ANSWERED = [*QA, {"question": "Who?", "category": 4, "answer": 1815}, {"question": "Why?", "category": 4}]
UNSOURCED = {**PROBES, "summarization": [{"question": "In short?", "ideal_summary": "A plan."}]}


def written(folder, form):
    """Write a set of that form; return its path."""
    if form == "beam":
        return put_beam(folder / "beam", probes=UNSOURCED)
    if form == "memdaily":
        answered = [{**one["question_list"][0], "answer": "b"} for one in TRAJECTORIES]
        told = [{**one, "question_list": [q]} for one, q in zip(TRAJECTORIES, answered, strict=True)]
        return put(folder / "memdaily" / "01_simple.json", told).parent
    if form == "realtalk":
        return put(folder / "data" / "Chat_1.json", {**REALTALK, "qa": ANSWERED}).parent
    value = {
        "locomo": [{**LOCOMO[0], "qa": ANSWERED}],
        "longmemeval": [LONGMEMEVAL, {**LONGMEMEVAL, "question_id": "q3_abs"}],
        "agentbench": [AGENTBENCH],
    }[form]
    return put(folder / f"{form}.json", value)


ASKED = {
    "agentbench": {
        "Which river has land 3?": ("R3", "three"),
        "What is it called?": ("called",),
        "Which has land 90?": ("r90",),
    },
    "beam": {"How long?": (), "Which plan?": (), "In short?": ("A plan.",)},
    "locomo": {"What flew?": (), "When?": (), "Who?": ("1815",)},
    "realtalk": {"What flew?": (), "When?": (), "Who?": ("1815",)},
    "longmemeval": {"Which two?": ("a and b",)},
    "memdaily": {"0?": ("b",), "1?": ("b",), "2?": ("b",), "3?": ("b",)},
}


@pytest.mark.parametrize("form", READERS)
def test_a_set_is_known_and_all_that_can_be_judged_is_asked(tmp_path, form):
    path = written(tmp_path, form)
    assert guess(path) == form
    read = read_any(path)
    assert {one.text: one.references for told in read for one in told.questions} == ASKED[form]
    assert read == read_any(path, form)


@pytest.mark.parametrize("form", ["locomo", "longmemeval", "agentbench"])
def test_the_order_of_fields_is_nothing(tmp_path, form):
    (first, *_) = json.loads(written(tmp_path, form).read_text())
    for key in first:
        turned = {key: first[key]} | first
        assert guess(put(tmp_path / "turned.json", [turned])) == form


@pytest.mark.parametrize("text", ["", "[", "[7]", '[{"x": 1}]', "A letter.", '{"\\u0000": 1}', "\x00\xff"])
def test_what_looks_like_nothing_is_refused_in_a_line(tmp_path, text):
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"set\.json looks like no set that is known; --form agentbench"):
        guess(path)


def test_folders_and_pipes_that_are_no_sets_are_refused(tmp_path):
    with pytest.raises(UsageError, match="looks like no set"):
        guess(tmp_path)
    with pytest.raises(UsageError, match="none: No such file"):
        guess(tmp_path / "none")
    with pytest.raises(UsageError, match="no plain file"):
        guess(Path("/dev/null"))


@pytest.mark.parametrize("form", ["agentbench", "locomo", "longmemeval"])
def test_what_a_stranger_answered_is_read_or_refused_in_one_line(tmp_path, form):
    value, kept = json.loads(written(tmp_path, form).read_text()), 0
    refused = []
    for wrong in spoiled(value):
        try:
            read = read_any(put(tmp_path / "wrong.json", wrong), form)
        except UsageError as error:
            refused.append(str(error))
        else:
            kept += 1
            questions = [one for told in read for one in told.questions]
            assert all(isinstance(one, str) for question in questions for one in question.references)
            assert all(question.references or question.answers for question in questions)
    assert kept
    assert len(refused) > 20
    assert all("wrong.json is not in the form of" in line and "\n" not in line for line in refused)


def test_a_form_that_is_named_is_believed(tmp_path):
    path = written(tmp_path, "locomo")
    with pytest.raises(UsageError, match="not in the form of LongMemEval"):
        read_any(path, "longmemeval")

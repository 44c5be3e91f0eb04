"""Formats are detected from file contents, parts share no conversation, and errors are one line."""

import itertools
import json
from pathlib import Path

import pytest

from scrubjay.experiments.answers import datasets
from scrubjay.experiments.answers.datasets import (
    PARTS,
    READERS,
    find_part,
    guess,
    part_names,
    read_any,
    select_part,
)
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.lm.conversations import Conversation

from .test_dialogues import (
    AGENTBENCH,
    LOCOMO,
    LONGMEMEVAL,
    PROBES,
    QA,
    REALTALK,
    TRAJECTORIES,
    corrupt,
    put,
    put_beam,
)

QA_WITH_ANSWERS = [
    *QA,
    {"question": "Who?", "category": 4, "answer": 1815},
    {"question": "Why?", "category": 4},
]
PROBES_WITHOUT_SOURCES = {**PROBES, "summarization": [{"question": "In short?", "ideal_summary": "A plan."}]}


def write_dataset(folder, file_format):
    """Write a data set in that format; return its path."""
    if file_format == "beam":
        return put_beam(folder / "beam", probes=PROBES_WITHOUT_SOURCES)
    if file_format == "memdaily":
        questions = [{**one["question_list"][0], "answer": "b"} for one in TRAJECTORIES]
        trajectories = [{**one, "question_list": [q]} for one, q in zip(TRAJECTORIES, questions, strict=True)]
        return put(folder / "memdaily" / "01_simple.json", trajectories).parent
    if file_format == "realtalk":
        return put(folder / "data" / "Chat_1.json", {**REALTALK, "qa": QA_WITH_ANSWERS}).parent
    value = {
        "locomo": [{**LOCOMO[0], "qa": QA_WITH_ANSWERS}],
        "longmemeval": [LONGMEMEVAL, {**LONGMEMEVAL, "question_id": "q3_abs"}],
        "agentbench": [AGENTBENCH],
    }[file_format]
    return put(folder / f"{file_format}.json", value)


REFERENCE_ANSWERS = {
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


@pytest.mark.parametrize("file_format", READERS)
def test_a_format_is_detected_and_every_gradable_question_is_read(tmp_path, file_format):
    path = write_dataset(tmp_path, file_format)
    assert guess(path) == file_format
    read = read_any(path)
    assert {
        one.text: one.references for conversation in read for one in conversation.questions
    } == REFERENCE_ANSWERS[file_format]
    assert read == read_any(path, file_format)


@pytest.mark.parametrize("file_format", ["locomo", "longmemeval", "agentbench"])
def test_the_order_of_fields_does_not_matter(tmp_path, file_format):
    (first, *_) = json.loads(write_dataset(tmp_path, file_format).read_text())
    for key in first:
        reordered_item = {key: first[key]} | first
        assert guess(put(tmp_path / "turned.json", [reordered_item])) == file_format


@pytest.mark.parametrize("text", ["", "[", "[7]", '[{"x": 1}]', "A letter.", '{"\\u0000": 1}', "\x00\xff"])
def test_an_unknown_format_is_an_error_of_one_line(tmp_path, text):
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"set\.json is in no known format; pass --format agentbench"):
        guess(path)


def test_folders_and_pipes_that_are_no_sets_are_refused(tmp_path):
    with pytest.raises(UsageError, match="is in no known format"):
        guess(tmp_path)
    with pytest.raises(UsageError, match="none: No such file"):
        guess(tmp_path / "none")
    with pytest.raises(UsageError, match="not a regular file"):
        guess(Path("/dev/null"))


@pytest.mark.parametrize("file_format", ["agentbench", "locomo", "longmemeval"])
def test_a_corrupt_file_is_read_or_refused_in_one_line(tmp_path, file_format):
    value, num_read = json.loads(write_dataset(tmp_path, file_format).read_text()), 0
    errors = []
    for wrong in corrupt(value):
        try:
            read = read_any(put(tmp_path / "wrong.json", wrong), file_format)
        except UsageError as error:
            errors.append(str(error))
        else:
            num_read += 1
            questions = [one for conversation in read for one in conversation.questions]
            assert all(isinstance(one, str) for question in questions for one in question.references)
            assert all(question.references or question.answers for question in questions)
    assert num_read
    assert len(errors) > 20
    assert all("wrong.json is not in the format of" in line and "\n" not in line for line in errors)


def test_an_explicit_format_is_used(tmp_path):
    path = write_dataset(tmp_path, "locomo")
    with pytest.raises(UsageError, match="not in the format of LongMemEval"):
        read_any(path, "longmemeval")


LISTED = sorted(datasets._parts())


def flat(names):
    return [*itertools.chain.from_iterable(one if isinstance(one, list) else [one] for one in names)]


@pytest.mark.parametrize("name", LISTED)
def test_nothing_is_in_both_parts_or_twice(name):
    development, test = (flat(part_names(name, part)) for part in PARTS)
    both = development + test
    assert development
    assert test
    assert len(set(both)) == len(both)


def test_people_of_realtalk_are_in_one_part():
    people = [
        {name for chat in part_names("REALTALK", part) for name in chat.split("_")[2:]} for part in PARTS
    ]
    assert not set.intersection(*people)


@pytest.mark.parametrize("name", ["BFCL", "LoCoMo", "REALTALK", "BEAM-100K"])
def test_a_part_is_what_its_names_say(name):
    both = [Conversation((), (), one) for part in PARTS for one in part_names(name, part)]
    for part in PARTS:
        assert [one.name for one in select_part(both, name, part)] == part_names(name, part)
    with pytest.raises(UsageError, match=f"{name}: 'stranger' is in neither part"):
        select_part([*both, Conversation((), (), "stranger")], name, "test")


def test_a_set_that_is_not_listed_is_parted_by_its_names_alike_at_every_call():
    both = [Conversation((), (), f"q{number}") for number in range(200)]
    development, test = (select_part(both, "LongMemEval", part) for part in PARTS)
    assert len(development) + len(test) == 200
    assert 60 < len(development) < 140
    assert {find_part(one.name, "LongMemEval") for one in test} == {"test"}
    assert find_part("q0", "LongMemEval") == find_part("q0", "LongMemEval")


def test_a_part_without_anything_is_an_error():
    with pytest.raises(UsageError, match="no conversations of the test part"):
        select_part([], "LongMemEval", "test")

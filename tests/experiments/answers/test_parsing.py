"""Values of untrusted files: what has the right type passes, and every failure is one line with the file."""

import pytest

from scrubjay.experiments.answers.parsing import (
    check_integer,
    expect_format,
    fields,
    items,
    make_conversation,
    references,
    text,
    to_record_text,
)
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.lm.conversations import Question
from scrubjay.memory.bank.record import MAX_TEXT_LENGTH


@pytest.mark.parametrize(
    ("value", "answers"),
    [(None, ()), (1815, ("1815",)), (" a ", ("a",)), (["a", "", 2.5], ("a", "2.5")), ("\ud800", ("?",))],
)
def test_correct_answers_are_texts(value, answers):
    assert references(value) == answers


@pytest.mark.parametrize(
    ("check", "wrong"), [(text, 7), (items, {}), (fields, []), (check_integer, True), (check_integer, "1")]
)
def test_another_type_is_refused_and_the_line_names_the_file(check, wrong, tmp_path):
    with (
        pytest.raises(UsageError, match=r"a\.json is not in the format of A: expected"),
        expect_format("A", tmp_path / "a.json"),
    ):
        check(wrong)


def test_the_innermost_file_is_named(tmp_path):
    with (
        pytest.raises(UsageError, match=r"inner is not in the format of A: missing key 'x'"),
        expect_format("A", tmp_path / "outer"),
        expect_format("A", tmp_path / "inner"),
    ):
        _ = {}["x"]


def test_a_record_has_some_text_and_not_too_much():
    assert to_record_text(" \n") == "-"
    assert len(to_record_text("a" * (MAX_TEXT_LENGTH + 1))) == MAX_TEXT_LENGTH


def test_questions_that_cannot_be_scored_are_left_out():
    by_place, by_answer, neither = (
        Question("?", frozenset(places), "", references=answers)
        for places, answers in (({0}, ()), ((), ("a",)), ((), ()))
    )
    assert make_conversation([], [by_place, neither, by_answer], "x").questions == (by_place, by_answer)

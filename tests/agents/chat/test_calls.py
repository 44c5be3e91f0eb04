"""Splitting of answers into text and calls, for all divisions into pieces."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.chat.answer_format import CallPart, CallSplitter
from scrubjay.agents.chat.constraint import CALL_BEGIN
from scrubjay.agents.chat.prompt import call_text

NAMES = st.text(min_size=1, max_size=5)
ARGUMENTS = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=8), max_size=2)
WORDS = st.text(st.sampled_from("ab <>/_tol{}"), max_size=12).filter(lambda text: CALL_BEGIN[:2] not in text)


def split(answer, cuts):
    """Return the text and the calls `(name, arguments)` of an answer that arrives in pieces."""
    splitter, places = CallSplitter(), sorted({0, len(answer), *cuts})
    pieces = [answer[begin:end] for begin, end in pairwise(places)]
    parts = [part for piece in pieces for part in splitter.push(piece)]
    parts += splitter.finish()
    text, calls = "", {}
    for part in parts:
        if isinstance(part, CallPart):
            name, arguments = calls.setdefault(part.index, (part.name, ""))
            assert part.name is None or not arguments, "the name comes first"
            calls[part.index] = (name, arguments + part.arguments)
        else:
            text += part
    return text, list(calls.values())


@given(WORDS, st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3), st.sets(st.integers(0, 200), max_size=20))
def test_however_it_is_cut_an_answer_has_the_same_parts(words, calls, cuts):
    answer = words + "\n".join(call_text(name, arguments) for name, arguments in calls)
    text, parts = split(answer, {min(cut, len(answer)) for cut in cuts})
    assert (text, parts) == split(answer, set(range(len(answer))))
    assert text == words
    assert [(name, json.loads(arguments)) for name, arguments in parts] == calls


def test_a_space_before_the_first_call_is_said():
    assert split(f" {call_text('add', {})}", set()) == (" ", [("add", "{}")])


def test_what_may_become_a_call_waits_and_is_shown_if_it_does_not():
    splitter = CallSplitter()
    assert list(splitter.push("2 <tool")) == ["2 "]
    assert list(splitter.push("box")) == ["<toolbox"]
    assert list(splitter.push(" <")) == [" "]
    assert list(splitter.finish()) == ["<"]
    assert list(splitter.finish()) == []


def test_of_a_call_that_is_cut_off_what_is_known_is_given():
    with_name, without_name = (
        f'{CALL_BEGIN}\n{{"name": "add", "arguments": {{"a": 1',
        f'{CALL_BEGIN}\n{{"name": "a',
    )
    assert split(with_name, {5, 30}) == ("", [("add", '{"a": 1')])
    assert split(without_name, {5}) == ("", [])

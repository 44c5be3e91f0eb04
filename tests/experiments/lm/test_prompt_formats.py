"""Tests of the plan formats: round trips, and parsing of arbitrary text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.experiments.lm.prompt_formats import StepPlan, format_plan, parse_plan, read_answer

from .records import SEARCH

words = st.lists(st.sampled_from("abcd"), max_size=5).map(" ".join)


@pytest.mark.parametrize("form", ["AutoGPT", "ToolLlama", "ModelScope", "KuaiAgent"])
@given(
    thought=words,
    arguments=st.dictionaries(words, st.integers() | words | st.lists(words, max_size=2), max_size=3),
)
def test_a_form_reads_what_it_wrote(form, thought, arguments):
    plan = StepPlan(thought, "look_up", arguments)
    read = parse_plan(form, format_plan(form, plan))
    assert (read.tool, read.arguments) == ("look_up", arguments)
    assert read.thought == ("" if form == "ModelScope" else thought)


@settings(max_examples=60)
@given(st.text() | st.text('{}[]":,<|startofthink|>Action Input:Thought\n', max_size=60))
@pytest.mark.requires("json_repair")
def test_any_reply_is_read_as_something(text):
    for form in ("ReACT", "AutoGPT", "ToolLlama", "ModelScope", "KuaiAgent"):
        plan = parse_plan(form, text, [SEARCH])
        assert isinstance(plan.arguments, dict)
        assert isinstance(read_answer(form, text), str)


@pytest.mark.requires("json_repair")
def test_broken_json_is_mended():
    text = "Sure: {'task_name': 'look', 'command': {'name': 'web_search', 'args': {'text': 'tree'}"
    assert parse_plan("KuaiAgent", text) == StepPlan("look", "web_search", {"text": "tree"})

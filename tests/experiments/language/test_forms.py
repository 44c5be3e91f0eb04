"""Forms of a reply: each reads what it wrote, and anything else as something."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.experiments.language.forms import Plan, read_answer, read_form, write_form

from .records import SEARCH

words = st.lists(st.sampled_from("abcd"), max_size=5).map(" ".join)


@pytest.mark.parametrize("form", ["AutoGPT", "ToolLlama", "ModelScope", "KuaiAgent"])
@given(
    thought=words,
    arguments=st.dictionaries(words, st.integers() | words | st.lists(words, max_size=2), max_size=3),
)
def test_a_form_reads_what_it_wrote(form, thought, arguments):
    plan = Plan(thought, "look_up", arguments)
    read = read_form(form, write_form(form, plan))
    assert (read.tool, read.arguments) == ("look_up", arguments)
    assert read.thought == ("" if form == "ModelScope" else thought)


@settings(max_examples=60)
@given(st.text() | st.text('{}[]":,<|startofthink|>Action Input:Thought\n', max_size=60))
def test_any_reply_is_read_as_something(text):
    for form in ("ReACT", "AutoGPT", "ToolLlama", "ModelScope", "KuaiAgent"):
        plan = read_form(form, text, [SEARCH])
        assert isinstance(plan.arguments, dict)
        assert isinstance(read_answer(form, text), str)


def test_broken_json_is_mended():
    text = "Sure: {'task_name': 'look', 'command': {'name': 'web_search', 'args': {'text': 'tree'}"
    assert read_form("KuaiAgent", text) == Plan("look", "web_search", {"text": "tree"})

"""Answer formats from OpenAI's options."""

from __future__ import annotations

import json

import pytest
from langchain_core.utils.function_calling import convert_to_openai_tool

from scrubjay.agents.chat.answer_format import AnswerFormat

from .talking import adder, weather

pytestmark = pytest.mark.requires("transformers", "llguidance")


def test_a_choice_is_free_unless_it_leans_to_calls(chat):
    free = chat(max_tokens=30).bind_tools([weather]).invoke("Hello")
    assert free.text
    assert not free.tool_calls
    leaning = chat(max_tokens=30, call_bias=1e4).bind_tools([weather])
    # The bias affects the first token only; this random model does not complete the call.
    assert leaning.invoke("Hello").text.startswith("<")
    never = chat(max_tokens=140, call_bias=1e4).bind_tools([weather], tool_choice="none").invoke("Hello")
    assert never.text == chat(max_tokens=140).bind_tools([weather], tool_choice="none").invoke("Hello").text


TOOLS = [convert_to_openai_tool(tool) for tool in (weather, adder)]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("choice", "callable_names", "require_call"),
    [
        (None, ["weather", "adder"], False),
        ("auto", ["weather", "adder"], False),
        ("none", [], False),
        (False, [], False),
        ("any", ["weather", "adder"], True),
        ("required", ["weather", "adder"], True),
        (True, ["weather", "adder"], True),
        ("adder", ["adder"], True),
        ({"type": "function", "function": {"name": "adder"}}, ["adder"], True),
    ],
)
def test_a_choice_says_what_may_be_called_and_what_must(choice, callable_names, require_call):
    answer_format = AnswerFormat.from_options({"tools": TOOLS, "tool_choice": choice})
    assert [tool["function"]["name"] for tool in answer_format.callable_tools] == callable_names
    assert answer_format.require_call is require_call
    # All tools are described, whatever may be called, so prompts share their beginning.
    assert answer_format.tools == TOOLS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tool_choice": "any"}, "there are no tools"),
        ({"tools": TOOLS, "tool_choice": "adder2"}, "choose from auto, any, none, weather, adder"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"response_format": {"type": "xml"}}, "expected"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "expected"),
    ],
)
def test_formats_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AnswerFormat.from_options(options)


def test_the_model_is_told_the_schema_that_its_answer_is_held_to():
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    answer_format = AnswerFormat.from_options({"response_format": form})
    assert answer_format.instruction.endswith(json.dumps(SCHEMA))
    assert "schema" not in AnswerFormat.from_options({"response_format": {"type": "json_object"}}).instruction
    assert (
        AnswerFormat.from_options({"response_format": {"type": "text"}})
        == AnswerFormat.from_options({})
        == AnswerFormat()
    )

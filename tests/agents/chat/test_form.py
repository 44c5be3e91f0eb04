"""Which form an answer is asked for."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("llguidance")

from langchain_core.utils.function_calling import convert_to_openai_tool

from scrubjay.agents.chat.form import AnswerFormat

from .talking import adder, weather


def test_a_choice_is_free_unless_it_leans_to_calls(chat):
    free = chat(max_tokens=30).bind_tools([weather]).invoke("Hello")
    assert free.text
    assert not free.tool_calls
    leaning = chat(max_tokens=30, call_bias=1e4).bind_tools([weather])
    # The bias holds for the first token; this model does not know how a call goes on.
    assert leaning.invoke("Hello").text.startswith("<")
    never = chat(max_tokens=140, call_bias=1e4).bind_tools([weather], tool_choice="none").invoke("Hello")
    assert never.text == chat(max_tokens=140).bind_tools([weather], tool_choice="none").invoke("Hello").text


TOOLS = [convert_to_openai_tool(tool) for tool in (weather, adder)]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("choice", "callable_names", "required"),
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
def test_a_choice_says_what_may_be_called_and_what_must(choice, callable_names, required):
    wanted = AnswerFormat.of({"tools": TOOLS, "tool_choice": choice})
    assert [tool["function"]["name"] for tool in wanted.callable_tools] == callable_names
    assert wanted.required is required
    # All are told, whatever may be called: the prompt begins alike.
    assert wanted.tools == TOOLS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tool_choice": "any"}, "there are no tools"),
        ({"tools": TOOLS, "tool_choice": "adder2"}, "a tool: weather, adder"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"response_format": {"type": "xml"}}, "expected"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "expected"),
    ],
)
def test_formats_that_cannot_be_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        AnswerFormat.of(given)


def test_the_model_is_told_the_schema_that_its_answer_is_held_to():
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    wanted = AnswerFormat.of({"response_format": form})
    assert wanted.instruction.endswith(json.dumps(SCHEMA))
    assert "schema" not in AnswerFormat.of({"response_format": {"type": "json_object"}}).instruction
    assert AnswerFormat.of({"response_format": {"type": "text"}}) == AnswerFormat.of({}) == AnswerFormat()

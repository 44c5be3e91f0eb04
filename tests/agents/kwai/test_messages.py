"""Reasoning in replies: it is not part of plans and answers, and goes back to providers that require it."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from scrubjay.agents.kwai import KwaiAgent
from scrubjay.agents.kwai.messages import extract_text, is_cut_off, strip_thoughts
from scrubjay.memory import MemoryBank

from .scripted_model import ScriptedModel, call, plan


@tool
def birth_year(name: str) -> str:
    """Return a year of birth."""
    return f"{name}: 1815"


pieces = st.sampled_from(
    ["<think>", "</think>", "<think", "<", " ", "\n", "so ", '{"command": "birth_year"}', "1815."]
)


@given(st.lists(pieces, max_size=6).map("".join))
def test_beginnings_of_a_text_give_beginnings_of_what_it_says(text):
    whole = strip_thoughts(text)
    assert text.endswith(whole)
    for length in range(len(text)):
        assert whole.startswith(strip_thoughts(text[:length]))


def test_thoughts_are_what_a_think_block_in_front_holds():
    assert strip_thoughts(" <think>One\n\ntwo.</think>\n\n1815.") == "1815."
    assert strip_thoughts("<think>without an end") == ""
    assert strip_thoughts("It is <think>so</think>.") == "It is <think>so</think>."
    assert strip_thoughts("a < b") == "a < b"
    assert strip_thoughts("<think>a</think>\n<think>b</think>c") == "c"
    assert strip_thoughts("<think>a</think><think>b") == ""


@given(st.lists(pieces, max_size=6).map("".join))
def test_what_a_whole_reply_says_ends_it_and_begins_with_no_thought(text):
    answer = extract_text(AIMessage(text))
    assert text.endswith(answer)
    assert not answer.startswith("<think>")
    before, mark, _ = text.partition("</think>")
    if mark and "<think>" not in before:
        assert len(answer) <= len(text) - len(before) - len(mark)
    else:
        assert answer == strip_thoughts(text)


def test_a_block_that_the_prompt_opened_ends_with_its_end():
    assert extract_text(AIMessage("a thought\n</think>\nThe answer.")) == "The answer."
    assert extract_text(AIMessage("</think>\n\nThe answer.")) == "The answer."
    assert extract_text(AIMessage("a</think><think>b</think>c")) == "c"
    for text in ("It is <think>so</think>.", "Write <think> first and </think> last."):
        assert extract_text(AIMessage(text)) == text
    assert extract_text(AIMessage("<think>a</think>It ends with </think>.")) == "It ends with </think>."


@pytest.mark.parametrize("native", [True, False])
def test_what_was_thought_of_is_neither_run_nor_shown_nor_remembered(native):
    reasoning = f"<think>I could say {plan('x', 'birth_year', name='Nobody')} first.</think> "
    replies = [
        reasoning + plan("when", "birth_year", name="Ada"),
        plan("", "task_complete"),
        f"{reasoning}In 1815.",
    ]
    parts = {}
    for way in ("invoke", "stream"):
        with MemoryBank(":memory:") as bank:
            agent = KwaiAgent(ScriptedModel(replies=list(replies), binds=native), [birth_year], memory=bank)
            updates = agent.stream("When?") if way == "stream" else [agent.invoke("When?")]
            parts[way] = list(updates)
            memory_texts = [record.text for record in bank.recent(9)]
        result = reduce(operator.add, parts[way])
        assert [step.arguments for step in result["steps"]] == [{"name": "Ada"}]
        assert (result["answer"], result["messages"][-1].text) == ("In 1815.", "In 1815.")
        assert not any("think" in text for text in memory_texts)
    assert [part["answer"] for part in parts["stream"] if part.get("answer")] == ["In ", "1815."]


@pytest.mark.parametrize("native", [True, False])
def test_a_thought_without_a_beginning_is_not_kept_though_a_stream_has_shown_it(native):
    reasoning = f"I could say {plan('x', 'birth_year', name='Nobody')} first.\n</think>\n\n"
    replies = [
        reasoning + plan("when", "birth_year", name="Ada"),
        plan("", "task_complete"),
        f"{reasoning}In 1815.",
    ]
    for way in ("invoke", "stream"):
        with MemoryBank(":memory:") as bank:
            agent = KwaiAgent(ScriptedModel(replies=list(replies), binds=native), [birth_year], memory=bank)
            updates: Any = agent.stream("When?") if way == "stream" else [agent.invoke("When?")]
            result = reduce(operator.add, updates)
            memory_texts = [record.text for record in bank.recent(9)]
        assert [step.arguments for step in result["steps"]] == [{"name": "Ada"}]
        assert result["messages"][-1].text == "In 1815."
        assert result["answer"] == (f"{reasoning}In 1815." if way == "stream" else "In 1815.")
        assert not any("think" in text or "Nobody" in text for text in memory_texts)


def test_blocks_of_thought_go_back_with_their_call():
    """Anthropic rejects a call without the reasoning block that preceded it."""
    block = {"type": "thinking", "thinking": "Ada first.", "signature": "4711"}
    reply = call("birth_year", name="Ada")
    reply.content = [block, {"type": "text", "text": "I look it up."}]
    model = ScriptedModel(replies=[reply, "ok", "1815."])
    result = KwaiAgent(model, [birth_year]).invoke("When?")
    (ai_message,) = [message for message in model.prompts[1] if message.type == "ai"]
    assert ai_message.content == [block, {"type": "text", "text": "I look it up."}]
    assert result["steps"][0].task_name == "I look it up."


def test_a_call_without_words_is_recorded_without_words():
    model = ScriptedModel(replies=[call("birth_year", name="Ada"), "ok", "1815."])
    result = KwaiAgent(model, [birth_year]).invoke("When?")
    assert (result["messages"][1].content, result["steps"][0].task_name) == ("", "birth_year")


@pytest.mark.parametrize(
    ("metadata", "cut"),
    [
        ({"finish_reason": "length"}, True),
        ({"finish_reason": "MAX_TOKENS"}, True),
        ({"stop_reason": "max_tokens"}, True),
        ({"stopReason": "max_tokens"}, True),
        ({"done_reason": "length"}, True),
        ({"incomplete_details": {"reason": "max_output_tokens"}}, True),
        ({"finish_reason": "stop", "incomplete_details": None}, False),
        ({"stop_reason": "tool_use"}, False),
        ({}, False),
    ],
)
def test_each_provider_s_word_for_a_limit_is_known(metadata, cut):
    assert is_cut_off(AIMessage("x", response_metadata=metadata)) is cut

"""Of a reply, thoughts are neither plan nor answer, and nothing that a provider wants back is lost."""

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
from scrubjay.agents.kwai.replies import said, was_cut, without_thoughts
from scrubjay.memory import MemoryBank

from .scripted import ScriptedModel, call, plan


@tool
def born(name: str) -> str:
    """Return a year of birth."""
    return f"{name}: 1815"


pieces = st.sampled_from(
    ["<think>", "</think>", "<think", "<", " ", "\n", "so ", '{"command": "born"}', "1815."]
)


@given(st.lists(pieces, max_size=6).map("".join))
def test_beginnings_of_a_text_give_beginnings_of_what_it_says(text):
    whole = without_thoughts(text)
    assert text.endswith(whole)
    for length in range(len(text)):
        assert whole.startswith(without_thoughts(text[:length]))


def test_thoughts_are_what_a_think_block_in_front_holds():
    assert without_thoughts(" <think>One\n\ntwo.</think>\n\n1815.") == "1815."
    assert without_thoughts("<think>without an end") == ""
    assert without_thoughts("It is <think>so</think>.") == "It is <think>so</think>."
    assert without_thoughts("a < b") == "a < b"
    assert without_thoughts("<think>a</think>\n<think>b</think>c") == "c"
    assert without_thoughts("<think>a</think><think>b") == ""


@given(st.lists(pieces, max_size=6).map("".join))
def test_what_a_whole_reply_says_ends_it_and_begins_with_no_thought(text):
    told = said(AIMessage(text))
    assert text.endswith(told)
    assert not told.startswith("<think>")
    before, closed, _ = text.partition("</think>")
    if closed and "<think>" not in before:
        assert len(told) <= len(text) - len(before) - len(closed)
    else:
        assert told == without_thoughts(text)


def test_a_block_that_the_prompt_opened_ends_with_its_end():
    assert said(AIMessage("a thought\n</think>\nThe answer.")) == "The answer."
    assert said(AIMessage("</think>\n\nThe answer.")) == "The answer."
    assert said(AIMessage("a</think><think>b</think>c")) == "c"
    for kept in ("It is <think>so</think>.", "Write <think> first and </think> last."):
        assert said(AIMessage(kept)) == kept
    assert said(AIMessage("<think>a</think>It ends with </think>.")) == "It ends with </think>."


@pytest.mark.parametrize("native", [True, False])
def test_what_was_thought_of_is_neither_run_nor_shown_nor_remembered(native):
    thought = f"<think>I could say {plan('x', 'born', name='Nobody')} first.</think> "
    replies = [thought + plan("when", "born", name="Ada"), plan("", "task_complete"), f"{thought}In 1815."]
    parts = {}
    for way in ("invoke", "stream"):
        with MemoryBank(":memory:") as bank:
            agent = KwaiAgent(ScriptedModel(replies=list(replies), binds=native), [born], memory=bank)
            found = agent.stream("When?") if way == "stream" else [agent.invoke("When?")]
            parts[way] = list(found)
            kept = [record.text for record in bank.recent(9)]
        result = reduce(operator.add, parts[way])
        assert [step.arguments for step in result["steps"]] == [{"name": "Ada"}]
        assert (result["answer"], result["messages"][-1].text) == ("In 1815.", "In 1815.")
        assert not any("think" in text for text in kept)
    assert [part["answer"] for part in parts["stream"] if part.get("answer")] == ["In ", "1815."]


@pytest.mark.parametrize("native", [True, False])
def test_a_thought_without_a_beginning_is_not_kept_though_a_stream_has_shown_it(native):
    thought = f"I could say {plan('x', 'born', name='Nobody')} first.\n</think>\n\n"
    replies = [thought + plan("when", "born", name="Ada"), plan("", "task_complete"), f"{thought}In 1815."]
    for way in ("invoke", "stream"):
        with MemoryBank(":memory:") as bank:
            agent = KwaiAgent(ScriptedModel(replies=list(replies), binds=native), [born], memory=bank)
            found: Any = agent.stream("When?") if way == "stream" else [agent.invoke("When?")]
            result = reduce(operator.add, found)
            kept = [record.text for record in bank.recent(9)]
        assert [step.arguments for step in result["steps"]] == [{"name": "Ada"}]
        assert result["messages"][-1].text == "In 1815."
        assert result["answer"] == (f"{thought}In 1815." if way == "stream" else "In 1815.")
        assert not any("think" in text or "Nobody" in text for text in kept)


def test_blocks_of_thought_go_back_with_their_call():
    """Anthropic refuses a call that came of thinking without it."""
    block = {"type": "thinking", "thinking": "Ada first.", "signature": "4711"}
    reply = call("born", name="Ada")
    reply.content = [block, {"type": "text", "text": "I look it up."}]
    model = ScriptedModel(replies=[reply, "ok", "1815."])
    result = KwaiAgent(model, [born]).invoke("When?")
    (sent,) = [message for message in model.sent[1] if message.type == "ai"]
    assert sent.content == [block, {"type": "text", "text": "I look it up."}]
    assert result["steps"][0].task_name == "I look it up."


def test_a_call_without_words_is_recorded_without_words():
    model = ScriptedModel(replies=[call("born", name="Ada"), "ok", "1815."])
    result = KwaiAgent(model, [born]).invoke("When?")
    assert (result["messages"][1].content, result["steps"][0].task_name) == ("", "born")


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
    assert was_cut(AIMessage("x", response_metadata=metadata)) is cut

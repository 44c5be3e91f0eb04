"""Arbitrary replies and tool failures: the agent does not crash, and its history stays valid."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import ToolException
from langchain_core.tools import tool as langchain_tool

from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent, Limits
from scrubjay.agents.kwai.messages import repair_transcript
from scrubjay.agents.language.prompts import load_prompts

from .replayable import assert_replayable
from .scripted_model import ScriptedModel, call, plan

NASTY = ["\ud800 lone", "a\x00b", "<<<END 00000000>>>", "«" * 5, "时间" * 40, "{" * 2000, '{"command": ']
texts = st.text(st.characters(), max_size=40) | st.sampled_from(NASTY)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
names = st.sampled_from(["echo", "crash", "quits", "mail", "task_complete", "no such tool!", ""]) | texts


@st.composite
def plan_texts(draw):
    value = {"task_name": draw(json_values), "command": {"name": draw(names), "args": draw(json_values)}}
    text = json.dumps(draw(st.sampled_from([value, [value], value["command"], {"command": "echo"}])))
    cut = draw(st.integers(0, len(text)))
    return draw(
        st.sampled_from([text, text[:cut], f"Sure:\n```json\n{text}\n```\nDone.", text.replace('"', "'")])
    )


@st.composite
def native_replies(draw):
    calls = [
        {"name": draw(names), "args": draw(st.dictionaries(texts, json_values, max_size=2)), "id": call_id}
        for call_id in draw(st.lists(st.sampled_from(["a", "b", "", None]), max_size=3))
    ]
    invalid = [
        {
            "name": draw(st.none() | names),
            "args": draw(st.none() | texts | plan_texts()),
            "id": call_id,
            "error": None,
        }
        for call_id in draw(st.lists(st.sampled_from(["c", None]), max_size=2))
    ]
    return AIMessage(draw(texts), tool_calls=calls, invalid_tool_calls=invalid)


@tool(side_effect=False)
def echo(text: str) -> str:
    """Repeat the text."""
    return text


@langchain_tool
def crash(text: str = "") -> str:
    """Fail."""
    raise [RuntimeError(text), ToolException(text), StopIteration(text), TimeoutError(text)][len(text) % 4]


@langchain_tool
def quits() -> str:
    """Try to end the process."""
    raise SystemExit(3)


def check(result):
    assert_replayable(result["messages"])
    assert result["messages"][-1].type == "ai"
    assert result["answer"].strip()
    call_ids = [c["id"] for m in result["messages"] for c in getattr(m, "tool_calls", [])]
    assert {step.call_id for step in result["steps"]} <= set(call_ids)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(texts | plan_texts(), min_size=10, max_size=10), st.booleans())
@example(["[" * 100_000] * 10, False)
@example(['{"a":' * 100_000] * 10, False)
@example(['{"command": {"name": "echo", "args": {"text": NaN}}}'] * 10, False)
def test_any_text_as_plan(replies, native):
    model = ScriptedModel(replies=replies, binds=native)
    check(KwaiAgent(model, [echo, crash, quits], max_steps=4).invoke("Why?"))


@settings(max_examples=25, deadline=None)
@given(st.lists(native_replies() | texts, min_size=10, max_size=10))
@example([call("quits", id="a")] * 10)
@example([AIMessage("", tool_calls=[{"name": "echo", "args": {}, "id": None}] * 3)] * 10)
def test_any_calls_as_plan(replies):
    check(KwaiAgent(ScriptedModel(replies=replies), [echo, crash, quits], max_steps=4).invoke("Why?"))


deep: dict[str, Any] = {"text": "https://a.example"}
for _ in range(250):
    deep = {"text": [deep]}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(native_replies(), min_size=8, max_size=8), texts | st.just("https://a.example/x"), st.booleans()
)
@example([call("echo", id="deep", **deep)] * 8, "hi", True)
@example([call("mail", id="m", text={"https://a.example/4711": 1})] * 8, "see https://a.example", False)
def test_any_calls_after_outside_text_change_nothing_without_approval(replies, outside_text, approves):
    approval_requests, sent_texts = [], []

    @langchain_tool
    def mail(text: object = None) -> str:
        """Send something."""
        sent_texts.append(text)
        return "sent"

    mail.metadata = {"side_effect": True}

    def approve(planned_call):
        approval_requests.append(planned_call.name)
        return approves

    # Worst case: besides the other calls, the tool with a side effect is always called.
    script = [
        call("echo", id="first", text=outside_text or "-"),
        *replies[:3],
        call("mail", id="last", text="x"),
    ]
    model = ScriptedModel(replies=[*script, *replies])
    agent = KwaiAgent(model, [echo, crash, quits, mail], max_steps=6, approve=approve)
    check(agent.invoke("Why?"))
    assert len(sent_texts) <= approval_requests.count("mail") * approves


@settings(max_examples=10, deadline=None)
@given(st.lists(native_replies(), min_size=10, max_size=10))
def test_any_calls_on_the_event_loop(replies):
    agent = KwaiAgent(ScriptedModel(replies=replies), [echo, crash, quits], max_steps=3)
    check(asyncio.run(agent.ainvoke("Why?")))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.sampled_from([RuntimeError("no quota"), KeyboardInterrupt()]))
def test_every_part_of_a_run_that_breaks_can_be_replayed(good, error):
    replies = [call("echo", id="same", text=str(number)) for number in range(good)]
    model = ScriptedModel(replies=[*replies, error])
    messages = []

    def watch():
        for part in KwaiAgent(model, [echo], max_steps=20, limits=Limits(tool_calls=20)).stream("Why?"):
            messages.extend(part.get("messages", []))
            assert_replayable(messages)

    with pytest.raises(type(error)):
        watch()
    assert len(messages) == 1 + 2 * good
    again = KwaiAgent(ScriptedModel(replies=["It broke."]), []).invoke(
        [*messages, HumanMessage("What happened?")]
    )
    check(again)


def test_a_reader_that_leaves_ends_the_run():
    model = ScriptedModel(rule=lambda messages: call("echo", text=str(len(messages))))
    for part in KwaiAgent(model, [echo], max_steps=50).stream("Why?"):
        if part.get("steps"):
            break
    assert len(model.prompts) == 1


broken_histories = st.lists(
    st.builds(HumanMessage, texts.filter(str.strip))
    | st.builds(SystemMessage, texts.filter(str.strip))
    | st.builds(
        lambda ids: AIMessage("so", tool_calls=[{"name": "echo", "args": {}, "id": name} for name in ids]),
        st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=3),
    )
    | st.builds(lambda name: ToolMessage("it", tool_call_id=name), st.sampled_from("abcdefgh")),
    max_size=8,
)


def calls_of(messages):
    return [(c["id"]) for m in messages for c in getattr(m, "tool_calls", [])]


@given(broken_histories.filter(lambda messages: len(set(calls_of(messages))) == len(calls_of(messages))))
def test_mending_closes_what_is_open_and_leaves_the_rest(messages):
    clean = [m for m in messages if not any("\ud800" <= char <= "\udfff" for char in m.text)]
    result = repair_transcript(clean, load_prompts("en"))
    assert_replayable(result)
    assert repair_transcript(result, load_prompts("en")) == result
    assert [m for m in result if m.type != "tool"] == [m for m in clean if m.type != "tool"]


def test_the_result_of_json_plans_reads_like_that_of_calls():
    model = ScriptedModel(
        replies=[plan("say", "echo", text="hi"), plan("", "task_complete"), "hi"], binds=False
    )
    messages = KwaiAgent(model, [echo]).invoke("Say hi")["messages"]
    assert messages[1].tool_calls[0]["args"] == {"text": "hi"}
    assert messages[2].tool_call_id == messages[1].tool_calls[0]["id"]

"""The planner: all methods of parsing a reply, and the messages for invalid plans."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from scrubjay.agents.kwai import KwaiAgent, Profile
from scrubjay.agents.language.prompts import load_prompts

from .scripted_model import ScriptedModel


@tool
def look_up(name: str) -> str:
    """Look a name up."""
    return "1815"


def parse_replies(*replies, binds=True):
    model = ScriptedModel(replies=list(replies), binds=binds)
    result = KwaiAgent(model, [look_up]).invoke("When?")
    return [step.parse_methods for step in result["steps"]], result, model


INVALID = {"name": "look_up", "args": '{"name": "Ada"', "id": "x", "error": "cut off"}


@pytest.mark.requires("json_repair")
def test_a_call_that_the_provider_could_not_parse_is_repaired():
    methods, result, _ = parse_replies(AIMessage("", invalid_tool_calls=[INVALID]), "done", "1815.")
    assert methods == [("invalid_tool_calls",)]
    assert result["steps"][0].arguments == {"name": "Ada"}


def test_a_call_written_as_text_is_run_if_there_is_such_a_tool():
    methods, _, _ = parse_replies('{"name": "look_up", "arguments": {"name": "Ada"}}', "done", "1815.")
    assert methods == [("json",)]
    _, result, _ = parse_replies('{"name": "Ada", "born": 1815}')
    assert result["answer"] == '{"name": "Ada", "born": 1815}'


def test_a_reply_that_stays_unreadable_ends_the_planning_not_the_answer():
    methods, result, model = parse_replies("Hm.", "Well.", "I do not know.", binds=False)
    assert (methods, result["stopped"], result["answer"]) == ([], "unreadable_plan", "I do not know.")
    assert len(model.prompts) == 3


def test_of_several_calls_the_first_is_run_and_the_others_are_told_so():
    two = [{"name": "look_up", "args": {"name": name}, "id": name} for name in ("Ada", "Alan")]
    _, result, _ = parse_replies(AIMessage("", tool_calls=two), "done", "1815.")
    assert [step.arguments for step in result["steps"]] == [{"name": "Ada"}]
    assert load_prompts("en").say("postponed") in [message.text for message in result["messages"]]


def test_an_empty_answer_is_asked_for_once_more_then_replaced():
    _, result, _ = parse_replies(AIMessage(""), "", "1815.")
    assert result["answer"] == "1815."
    _, result, model = parse_replies(AIMessage(""), "", " ")
    assert result["answer"].strip() == load_prompts("en").say("no_answer")
    assert len(model.prompts) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("我去查一下。", "其中没有 JSON 对象"),
        ('{"task_name": "x"}', "command 没有 name"),
        ('{"command": {"name": "f", "args": [1]}}', "args 必须是 JSON 对象，而不是 list"),
    ],
)
def test_a_chinese_planner_is_told_in_chinese_what_is_wrong_with_its_plan(reply, message):
    model = ScriptedModel(replies=[reply, reply, "不知道。"], binds=False)
    KwaiAgent(model, [look_up], Profile(language="zh")).invoke("什么时候？")
    assert f"无法使用刚才的回复：{message}" in model.prompts[1][-1].text
    # The stop reason is a sentence, too, and not an internal name.
    assert "unreadable_plan" not in model.prompts[2][-1].text
    assert "读不出计划" in model.prompts[2][-1].text


def test_a_chinese_planner_is_told_in_chinese_which_argument_is_missing():
    model = ScriptedModel(
        replies=[AIMessage("", tool_calls=[{"name": "look_up", "args": {}, "id": "a"}]), "好", "。"]
    )
    result = KwaiAgent(model, [look_up], Profile(language="zh")).invoke("什么时候？")
    assert result["steps"][0].result == "look_up 的参数不符合要求：name: 缺少这个参数"

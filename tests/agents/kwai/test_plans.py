"""Every rung of the ladder from a model's text to a plan, and the wording of both languages."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from scrubjay.agents.kwai import KwaiAgent, Profile
from scrubjay.agents.kwai.plans import PlanError, read_plan
from scrubjay.agents.language.prompts import LANGUAGES, load_prompts

from .scripted import ScriptedModel

PLAN = {
    "task_name": "find it",
    "command": {"name": "look_up", "args": {"url": "https://a.example:80/x", "at": "12:30"}},
}


@pytest.mark.parametrize(
    ("text", "rung"),
    [
        (json.dumps(PLAN), "json"),
        (json.dumps([PLAN, {"task_name": "later"}]), "json"),
        (f"Here it is:\n```json\n{json.dumps(PLAN)}\n```\nI hope it helps.", "prose"),
        (f"A set is {{1, 2}}. {json.dumps(PLAN)} And that {{is}} all.", "prose"),
        (json.dumps(PLAN)[:-2], "repaired"),
        (json.dumps(PLAN).replace('"', "'"), "repaired"),
        (json.dumps(PLAN).replace('"task_name"', "task_name").replace('"command"', "command"), "repaired"),
        (json.dumps(PLAN)[:-1] + ",}", "repaired"),
        (json.dumps(PLAN).replace('"command"', "command") + " So far.", "repaired"),
    ],
)
def test_a_plan_is_read_whole_whatever_surrounds_it(text, rung):
    plan = read_plan(text)
    assert (plan.task_name, plan.call.name, plan.call.arguments) == (
        "find it",
        "look_up",
        PLAN["command"]["args"],
    )
    assert plan.rung == rung


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(
        str.strip
    ),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
        st.integers() | st.booleans(),
    ),
)
def test_a_plan_survives_writing_and_reading(name, arguments):
    text = json.dumps({"task_name": "x", "command": {"name": name, "args": arguments}})
    call = read_plan(text).call
    assert (call.name, call.arguments) == (name.strip(), arguments)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("I would look it up.", "no JSON object"),
        ('{"task_name": "x"}', "command has no name"),
        ('{"command": {"name": "f", "args": [1]}}', "args must be a JSON object, not list"),
        ('{"command": 4}', "command must be an object"),
        ('{"command": {"name": "f", "args": {"x": Infinity}}}', "no form for"),
    ],
)
def test_what_is_no_plan_is_refused_with_a_reason(text, problem):
    with pytest.raises(PlanError, match=problem):
        read_plan(text)


@tool
def look_up(name: str) -> str:
    """Look a name up."""
    return "1815"


def ladder(*replies, binds=True):
    model = ScriptedModel(replies=list(replies), binds=binds)
    result = KwaiAgent(model, [look_up]).invoke("When?")
    return [step.rungs for step in result["steps"]], result, model


INVALID = {"name": "look_up", "args": '{"name": "Ada"', "id": "x", "error": "cut off"}


def test_a_call_that_the_provider_could_not_parse_is_repaired():
    rungs, result, _ = ladder(AIMessage("", invalid_tool_calls=[INVALID]), "done", "1815.")
    assert rungs == [("invalid_tool_calls",)]
    assert result["steps"][0].arguments == {"name": "Ada"}


def test_a_call_written_as_text_is_run_if_there_is_such_a_tool():
    rungs, _, _ = ladder('{"name": "look_up", "arguments": {"name": "Ada"}}', "done", "1815.")
    assert rungs == [("json",)]
    _, result, _ = ladder('{"name": "Ada", "born": 1815}')
    assert result["answer"] == '{"name": "Ada", "born": 1815}'


def test_a_reply_that_stays_unreadable_ends_the_planning_not_the_answer():
    rungs, result, model = ladder("Hm.", "Well.", "I do not know.", binds=False)
    assert (rungs, result["stopped"], result["answer"]) == ([], "unreadable_plan", "I do not know.")
    assert len(model.sent) == 3


def test_of_several_calls_the_first_is_run_and_the_others_are_told_so():
    two = [{"name": "look_up", "args": {"name": name}, "id": name} for name in ("Ada", "Alan")]
    _, result, _ = ladder(AIMessage("", tool_calls=two), "done", "1815.")
    assert [step.arguments for step in result["steps"]] == [{"name": "Ada"}]
    assert load_prompts("en").say("postponed") in [message.text for message in result["messages"]]


def test_an_empty_answer_is_asked_for_once_more_then_replaced():
    _, result, _ = ladder(AIMessage(""), "", "1815.")
    assert result["answer"] == "1815."
    _, result, model = ladder(AIMessage(""), "", " ")
    assert result["answer"].strip() == load_prompts("en").say("no_answer")
    assert len(model.sent) == 3


def test_both_languages_say_the_same_things_with_the_same_values():
    english, *others = (load_prompts(language) for language in LANGUAGES)
    for other in others:
        assert other.names == english.names
        assert len(other.weekdays) == len(english.weekdays) == 7
        for name in english.names:
            assert other.asks_for(name) == english.asks_for(name), name


@given(st.text())
def test_values_are_never_read_as_templates(text):
    assert (
        load_prompts("en").say("goal", question=f"$reason ${{x}} {text}")
        == f"QUESTION: $reason ${{x}} {text}"
    )


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("我去查一下。", "其中没有 JSON 对象"),
        ('{"task_name": "x"}', "command 没有 name"),
        ('{"command": {"name": "f", "args": [1]}}', "args 必须是 JSON 对象，而不是 list"),
    ],
)
def test_a_chinese_planner_is_told_in_chinese_what_is_wrong_with_its_plan(reply, said):
    model = ScriptedModel(replies=[reply, reply, "不知道。"], binds=False)
    KwaiAgent(model, [look_up], Profile(language="zh")).invoke("什么时候？")
    assert f"无法使用刚才的回复：{said}" in model.sent[1][-1].text
    # It is told the end of the work, too, in words and not by a name of ours.
    assert "unreadable_plan" not in model.sent[2][-1].text
    assert "读不出计划" in model.sent[2][-1].text


def test_a_chinese_planner_is_told_in_chinese_which_argument_is_missing():
    model = ScriptedModel(
        replies=[AIMessage("", tool_calls=[{"name": "look_up", "args": {}, "id": "a"}]), "好", "。"]
    )
    result = KwaiAgent(model, [look_up], Profile(language="zh")).invoke("什么时候？")
    assert result["steps"][0].result == "look_up 的参数不符合要求：name: 缺少这个参数"

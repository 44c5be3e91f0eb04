"""Defects of KwaiAgents' released code that this agent must not have, with at least one test for each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from langchain_core.tools import ToolException, tool

from scrubjay.agents.kwai import KwaiAgent, Profile
from scrubjay.agents.language.prompts import LANGUAGES, load_prompts
from scrubjay.memory import MemoryBank

from ..scripted_model import ScriptedModel, call, plan


@tool
def look_up(name: str) -> str:
    """Look a name up."""
    return f"{name}: 1815"


def json_agent(*replies, tools=(look_up,), **options):
    model = ScriptedModel(replies=list(replies), binds=False)
    return KwaiAgent(model, tools, **options), model


def test_1_no_tools_is_a_choice_not_an_error():
    agent, _ = json_agent("Hello.", tools=())
    assert agent.invoke("Hi")["answer"] == "Hello."


@pytest.mark.parametrize(
    "reply",
    ['{"task_name": "x"}', '{"command": {}}', '{"command": []}', '{"command": {"name": 3}}', "[]", "7", ""],
)
def test_2_a_plan_is_checked_before_it_is_read(reply):
    agent, model = json_agent(reply, plan("x", "look_up", name="Ada"), plan("", "task_complete"), "1815.")
    result = agent.invoke("When?")
    assert result["answer"] == "1815."
    assert result["steps"][0].parse_methods[0].startswith("unreadable: ")
    # The request to correct the plan contains the error.
    assert result["steps"][0].parse_methods[0].removeprefix("unreadable: ") in model.prompts[1][-1].text


@pytest.mark.parametrize("error", [RuntimeError("the shelf is empty"), ToolException("the shelf is empty")])
@pytest.mark.parametrize("language", LANGUAGES)
def test_3_the_planner_sees_what_failed_and_is_asked_to_think_again(error, language):
    @tool
    def fail() -> str:
        """Fail."""
        raise error

    agent, model = json_agent(
        plan("x", "fail"),
        plan("", "task_complete"),
        "?",
        tools=[fail],
        profile=Profile(language=language),
    )
    result = agent.invoke("When?")
    assert result["steps"][0].status == "error"
    prompts = load_prompts(language)
    problem = prompts.say("reflection_error")
    assert "the shelf is empty" in model.prompts[1][-1].text
    assert prompts.say("reflection", problem=problem) in model.prompts[1][-1].text


@pytest.mark.parametrize("output", ["  ", None, [], {}])
def test_3_an_empty_result_is_reflected_on_and_a_full_one_is_not(output):
    @tool
    def empty() -> object:
        """Find nothing."""
        return output

    replies = [call("empty"), call("look_up", name="Ada"), "done", "1815."]
    model = ScriptedModel(replies=replies)
    KwaiAgent(model, [empty, look_up]).invoke("When?")
    problem = load_prompts("en").say("reflection_empty")
    assert [problem in prompt[-1].text for prompt in model.prompts] == [False, True, False, False]


def test_3_wrong_arguments_are_explained():
    model = ScriptedModel(replies=[call("look_up", title="Ada"), "done", "?"])
    step = KwaiAgent(model, [look_up]).invoke("When?")["steps"][0]
    assert step.status == "error"
    assert "name: Field required" in step.result


@pytest.mark.parametrize("language", LANGUAGES)
def test_4_the_answer_is_asked_for_in_one_language_the_question_s(language):
    words = load_prompts(language).say("conclude")
    assert ("language of the question" in words) == (language == "en")
    assert ("提问所用的语言" in words) == (language == "zh")
    assert not any(name in words for name in ("Chinese", "English", "中文", "英文"))


def test_5_every_date_exists_and_has_its_weekday():
    zone = timezone(timedelta(hours=8), "CST")
    english = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    for day in range(0, 366 * 2, 5):
        now = datetime(2023, 12, 31, 23, 59, tzinfo=zone) + timedelta(days=day)
        agent, model = json_agent("Hi.", tools=(), clock=lambda now=now: now)
        agent.invoke("Which day is it?")
        (line,) = [line for line in model.prompts[0][-1].text.splitlines() if line.startswith("Now: ")]
        date_in_prompt = datetime.strptime(line.split(": ")[1].split(",")[0], "%Y-%m-%d")
        assert date_in_prompt.date() == now.date()
        assert f", {english[now.weekday()]}, 23:59 (CST)" in line


def test_6_agents_share_nothing():
    one, first = json_agent(plan("", "task_complete"), "A.", profile=Profile("One", language="en"))
    two, second = json_agent("B.", tools=(), profile=Profile("Two", language="zh"))
    before = {name: value for name, value in vars(KwaiAgent).items() if not callable(value)}
    one.invoke("a")
    two.invoke("b")
    assert {name: value for name, value in vars(KwaiAgent).items() if not callable(value)} == before
    assert one.tools.keys() == {"look_up"}
    assert not two.tools
    assert "One" in first.prompts[0][0].text
    assert "Two" in second.prompts[0][0].text


def test_7_supplied_knowledge_is_used():
    agent, model = json_agent(plan("", "task_complete"), "1815.")
    agent.invoke({"messages": "When?", "knowledge": "Ada was born in 1815."})
    assert all("Ada was born in 1815." in prompt[-1].text for prompt in model.prompts)


def test_8_tokens_are_counted_even_for_a_model_that_does_not_say():
    class Silent(ScriptedModel):
        def _next(self, messages):
            return super()._next(messages).model_copy(update={"usage_metadata": None})

    usage = KwaiAgent(Silent(replies=["Hello there."])).invoke("Hi")["usage"]
    assert usage["output_tokens"] == 3  # twelve characters
    assert usage["total_tokens"] == usage["input_tokens"] + 3 > 50


def test_8_a_later_process_remembers(tmp_path):
    with MemoryBank(tmp_path / "bank.db") as bank:
        json_agent("Noted.", tools=(), memory=bank)[0].invoke("The red key opens the shed.")
    with MemoryBank(tmp_path / "bank.db") as bank:
        agent, model = json_agent("The red one.", tools=(), memory=bank)
        agent.invoke("Which key opens the shed?")
    assert "The red key opens the shed." in model.prompts[0][-1].text


@pytest.mark.parametrize("native", [True, False])
def test_9_an_unknown_tool_is_answered_with_the_tools_there_are(native):
    wrong, right = ("lookup", "look_up")
    replies = [call(wrong, name="Ada"), call(right, name="Ada"), "done", "1815."]
    if not native:
        replies = [
            plan("x", wrong, name="Ada"),
            plan("x", right, name="Ada"),
            plan("", "task_complete"),
            "1815.",
        ]
    model = ScriptedModel(replies=replies, binds=native)
    result = KwaiAgent(model, [look_up]).invoke("When?")
    assert [step.status for step in result["steps"]] == ["error", "success"]
    assert "Tools on offer: look_up." in result["steps"][0].result
    assert result["stopped"] == "finished"


def test_10_no_network_is_touched(monkeypatch):
    def refuse(*args):
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    agent, _ = json_agent(plan("x", "look_up", name="Ada"), plan("", "task_complete"), "1815.")
    assert agent.invoke("When?")["usage"]["total_tokens"] > 0


@pytest.mark.slow
def test_the_agent_is_imported_without_a_tokenizer_or_a_tensor():
    source = str(Path(__file__).parents[4] / "src")
    code = (
        "import sys, scrubjay.agents, json; one = list(sys.modules); "
        "import scrubjay.agents.kwai; print(json.dumps([one, list(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": source},
    )
    room, agent = (
        {name.partition(".")[0] for name in names} for names in json.loads(done.stdout.splitlines()[-1])
    )
    assert "langchain_core" not in room
    assert "langchain_core" in agent
    assert agent.isdisjoint({"torch", "transformers", "tiktoken", "huggingface_hub", "json_repair", "ray"})

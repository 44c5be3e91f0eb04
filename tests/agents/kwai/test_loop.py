"""The agent loop: order of prompts, results and events."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from .questions import JSON, NATIVE, QUESTION, make
from .replayable import assert_replayable
from .scripted_model import call


@pytest.mark.parametrize("replies", [NATIVE, JSON], ids=["native", "json"])
def test_it_plans_runs_and_concludes(replies):
    agent, model = make(replies)
    result = agent.invoke(QUESTION)
    assert result["answer"] == "97 years apart." == result["messages"][-1].text
    assert result["stopped"] == "finished"
    assert [(step.tool, step.arguments, step.result) for step in result["steps"]] == [
        ("birth_year", {"name": "Ada"}, "1815"),
        ("birth_year", {"name": "Alan"}, "1912"),
    ]
    assert [message.type for message in result["messages"]] == ["human", "ai", "tool", "ai", "tool", "ai"]
    assert_replayable(result["messages"])
    assert len(model.prompts) == 4  # at most max_steps plans, and one conclusion
    assert "1815" in str(model.prompts[1])
    assert "1912" in str(model.prompts[3])


def test_without_tools_nothing_is_planned():
    agent, model = make(["Hello."], [])
    assert agent.invoke("Hi")["answer"] == "Hello."
    assert len(model.prompts) == 1


def test_words_in_place_of_a_first_plan_are_the_answer():
    agent, model = make([AIMessage("Hello, Ada.")])
    result = agent.invoke("Hi")
    assert result["answer"] == "Hello, Ada."
    assert len(model.prompts) == 1


def test_the_events_have_the_names_of_kwaiagents():
    agent, _ = make(NATIVE)
    actions = [event.action for event in agent.invoke(QUESTION)["events"]]
    step = ["thinking", "thought", "execute", "observation"]
    assert actions == [*step, *step, "thinking", "finish", "conclusion", "chain_end"]


def test_an_address_is_read_and_one_found_in_a_result_is_followed():
    @tool
    def open_page(url: str) -> str:
        """Open a page."""
        return "see https://b.example"

    first, second = (call("open_page", url=f"https://{host}.example") for host in "ab")
    agent, _ = make([first, second, "enough", "Seen."], [open_page])
    events = agent.invoke("What is there?")["events"]
    address_events = [(event.action, event.text) for event in events if event.action in ("reading", "click")]
    assert address_events == [("reading", "https://a.example"), ("click", "https://b.example")]

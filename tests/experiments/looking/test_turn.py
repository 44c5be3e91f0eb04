"""An agent's turn as a trace: who led to what, and from where on text from outside was in view."""

from datetime import UTC, datetime

import pytest

pytest.importorskip("langchain_core")

from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent
from scrubjay.experiments.looking.trace import from_json, to_json
from scrubjay.experiments.looking.turn import trace_turn
from scrubjay.memory import MemoryBank

from ...agents.kwai.scripted import ScriptedModel, call


@tool(side_effect=False, untrusted=True)
def look_up(topic: str) -> str:
    """Look something up."""
    return "Jays cache acorns."


@tool(side_effect=True, untrusted=False)
def send_mail(text: str) -> str:
    """Send a mail."""
    return "sent"


def answered(tmp_path, replies, tools=(look_up, send_mail)):
    with MemoryBank(tmp_path / "m.db") as bank:
        bank.add("Vera asks about jays on Mondays.")
        bank.add("Jays are birds.", trust="agent")
        model = ScriptedModel(replies=list(replies), binds=True)
        agent = KwaiAgent(model, list(tools), memory=bank, clock=lambda: datetime.now(UTC))
        return agent.invoke("What do jays cache?")


def test_every_moment_leads_back_to_what_it_came_from(tmp_path):
    replies = [call("look_up", topic="jays"), "enough", "They cache acorns."]
    result = answered(tmp_path, replies)
    trace = trace_turn("What do jays cache?", result)
    assert from_json(to_json(trace)) == trace
    choices = [step.choice for step in trace.steps]
    told = {one.name: one for one in trace.steps[choices.index("thinking")].recalled}["memory"]
    remembered = [number for number, choice in enumerate(choices) if choice == "remembered"]
    assert told.steps.tolist() == remembered
    assert len(remembered) == len(result["recalled"]) == 2
    assert told.weights.argmax() == [hit.score for hit in result["recalled"]].index(told.most)
    observation = choices.index("observation")
    (led,) = trace.steps[observation].recalled
    assert (led.name, led.steps.tolist()) == ("its call", [choices.index("execute")])
    conclusion = {one.name: one.steps.tolist() for one in trace.steps[choices.index("conclusion")].recalled}
    assert conclusion == {"memory": remembered, "results": [observation]}
    outside = trace.tracks["text from outside"]
    assert set(outside[:observation]) == {0.0}
    assert set(outside[observation:]) == {1.0}
    assert trace.about["stopped"] == "finished"
    assert int(trace.about["total tokens"]) > 0


def test_what_was_blocked_says_why(tmp_path):
    replies = [call("look_up", topic="jays"), call("send_mail", text="acorns"), "enough", "I could not."]
    trace = trace_turn("Mail it.", answered(tmp_path, replies))
    blocked = next(step for step in trace.steps if step.choice == "fail")
    assert "send_mail" in blocked.text or "outside" in blocked.text
    (led,) = blocked.recalled
    assert "send_mail" in trace.steps[led.steps[0]].text


def test_an_answer_without_tools_or_memory_is_a_turn_too():
    model = ScriptedModel(replies=["Hello."], binds=True)
    trace = trace_turn("Hi?", KwaiAgent(model).invoke("Hi?"))
    assert trace.steps[0].text == "Hi?"
    assert not any(step.recalled for step in trace.steps)

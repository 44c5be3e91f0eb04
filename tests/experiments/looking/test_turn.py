"""An agent's turn as a trace: who led to what, and from where on text from outside was in view."""

from datetime import UTC, datetime

import pytest

pytest.importorskip("langchain_core")

import scrubjay
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
    trace = trace_turn(result)
    assert from_json(to_json(trace)) == trace
    choices = [step.choice for step in trace.steps]
    told = {one.name: one for one in trace.steps[choices.index("thinking")].recalled}["memory"]
    remembered = [number for number, choice in enumerate(choices) if choice == "remembered"]
    assert told.steps.tolist() == remembered
    assert len(remembered) == len(result["recalled"]) == 2
    found = next(event.recalled for event in result["events"] if event.action == "thinking")
    assert told.weights.argmax() == [hit.score for hit in found].index(told.most)
    observation = choices.index("observation")
    (led,) = trace.steps[observation].recalled
    assert (led.name, led.steps.tolist()) == ("its call", [choices.index("execute")])
    conclusion = {one.name: one.steps.tolist() for one in trace.steps[choices.index("conclusion")].recalled}
    assert conclusion == {"memory": remembered, "results": [observation]}
    outside = trace.tracks["text from outside"]
    assert set(outside[:observation]) == {0.0}
    assert set(outside[observation:]) == {1.0}
    assert trace.about["stopped"] == "finished"
    tokens = [spent or 0 for spent in trace.tracks["tokens"]]
    assert int(trace.about["total tokens"]) == tokens[-1] > 0
    assert tokens == sorted(tokens)
    for record, number in zip(found, remembered, strict=True):
        why = record.explanation
        parts = (why.from_words, why.from_embeddings, why.from_neighbours, why.recency, why.importance)
        assert sum(parts) == pytest.approx(record.score)
        told = trace.steps[number].text.splitlines()[-1]
        for name in ("from_words", "from_neighbours", "recency", "importance"):
            assert f"{name} " in told


def test_what_was_blocked_says_why(tmp_path):
    replies = [call("look_up", topic="jays"), call("send_mail", text="acorns"), "enough", "I could not."]
    trace = trace_turn(answered(tmp_path, replies))
    blocked = next(step for step in trace.steps if step.choice == "blocked")
    assert "send_mail" in blocked.text or "outside" in blocked.text
    led = {one.name: one.steps.tolist() for one in blocked.recalled}
    assert "send_mail" in trace.steps[led["its call"][0]].text
    (read,) = led["text from outside"]
    assert (trace.steps[read].choice, trace.steps[read].text) == ("observation", "Jays cache acorns.")
    assert (trace.about["calls blocked"], trace.about["text from outside"]) == ("1", "was read")


def test_a_call_that_cannot_run_is_no_blocked_one(tmp_path):
    replies = [call("no_such_tool"), "enough", "I could not."]
    trace = trace_turn(answered(tmp_path, replies))
    assert [step.choice for step in trace.steps].count("fail") == 1
    assert (trace.about["calls blocked"], trace.about["text from outside"]) == ("0", "none was read")


def test_a_document_is_in_view_from_the_beginning():
    model = ScriptedModel(replies=["enough", "Acorns."], binds=True)
    asked = {"messages": "What do jays cache?", "knowledge": ["Jays cache acorns."]}
    trace = trace_turn(KwaiAgent(model, [send_mail]).invoke(asked))
    assert set(trace.tracks["text from outside"]) == {1.0}


def test_each_plan_leads_to_the_records_that_came_up_for_it(tmp_path):
    """A bank answers another question after a step; what came up for the first plan alone is shown, too."""

    class Bank(MemoryBank):
        asked = 0

        def search(self, *given, **options):
            self.asked += 1
            hits = super().search(*given, **options)
            return [hit for hit in hits if ("birds" in hit.text) == (self.asked > 1)]

    with Bank(tmp_path / "m.db") as bank:
        bank.add("Jays fly.")
        bank.add("Jays are birds.")
        model = ScriptedModel(replies=[call("look_up", topic="jays"), "enough", "Acorns."], binds=True)
        agent = KwaiAgent(model, [look_up], memory=bank)
        trace = trace_turn(agent.invoke("What are jays?"))
    plans = [step for step in trace.steps if step.choice in ("thinking", "conclusion")]
    led = [one.steps.tolist() for step in plans for one in step.recalled if one.name == "memory"]
    told = [[trace.steps[place].text.splitlines()[0] for place in places] for places in led]
    assert told == [["Jays fly."], ["Jays are birds."], ["Jays are birds."]]


def test_a_notebook_shows_what_an_agent_returned(tmp_path):
    result = answered(tmp_path, [call("look_up", topic="jays"), "enough", "They cache acorns."])
    seen = scrubjay.look(result)
    assert seen.trace == trace_turn(result)
    assert seen.trace.title == "What do jays cache?"
    assert "They cache acorns." in seen._repr_html_()
    model = ScriptedModel(replies=["And hello.", "Hello again."], binds=True)
    first = KwaiAgent(model).invoke("Hi?")
    second = KwaiAgent(model).invoke({"messages": [*first["messages"], ("user", "And now?")]})
    assert scrubjay.look(second).trace.title == "And now?"
    with pytest.raises(ValueError, match="of answer, steps is no answer of KwaiAgent"):
        scrubjay.look({"answer": "", "steps": []})


def test_an_answer_without_tools_or_memory_is_a_turn_too():
    model = ScriptedModel(replies=["Hello."], binds=True)
    trace = trace_turn(KwaiAgent(model).invoke("Hi?"))
    assert trace.steps[0].text == "Hi?"
    assert not any(step.recalled for step in trace.steps)

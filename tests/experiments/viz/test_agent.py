"""Trace of an agent's answer: recalled steps, and when untrusted text was read."""

from datetime import UTC, datetime

import pytest

import scrubjay
from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent
from scrubjay.experiments.viz.agent import trace_turn
from scrubjay.experiments.viz.trace import from_json, to_json
from scrubjay.memory import MemoryBank

from ...agents.kwai.scripted_model import ScriptedModel, call


@tool(side_effect=False, untrusted=True)
def look_up(topic: str) -> str:
    """Look something up."""
    return "Jays cache acorns."


@tool(side_effect=True, untrusted=False)
def send_mail(text: str) -> str:
    """Send a mail."""
    return "sent"


def run_agent(tmp_path, replies, tools=(look_up, send_mail)):
    with MemoryBank(tmp_path / "m.db") as bank:
        bank.add("Vera asks about jays on Mondays.")
        bank.add("Jays are birds.", trust="agent")
        model = ScriptedModel(replies=list(replies), binds=True)
        agent = KwaiAgent(model, list(tools), memory=bank, clock=lambda: datetime.now(UTC))
        return agent.invoke("What do jays cache?")


def test_every_moment_leads_back_to_what_it_came_from(tmp_path):
    replies = [call("look_up", topic="jays"), "enough", "They cache acorns."]
    result = run_agent(tmp_path, replies)
    trace = trace_turn(result)
    assert from_json(to_json(trace)) == trace
    choices = [step.choice for step in trace.steps]
    memory_recall = {one.name: one for one in trace.steps[choices.index("thinking")].recalls}["memory"]
    memory_steps = [number for number, choice in enumerate(choices) if choice == "memory"]
    assert memory_recall.steps.tolist() == memory_steps
    assert len(memory_steps) == len(result["recalled"]) == 2
    hits = next(event.recalled_records for event in result["events"] if event.action == "thinking")
    assert memory_recall.weights.argmax() == [hit.score for hit in hits].index(memory_recall.most)
    observation = choices.index("observation")
    (recalled_steps,) = trace.steps[observation].recalls
    assert (recalled_steps.name, recalled_steps.steps.tolist()) == ("tool call", [choices.index("execute")])
    conclusion = {one.name: one.steps.tolist() for one in trace.steps[choices.index("conclusion")].recalls}
    assert conclusion == {"memory": memory_steps, "results": [observation]}
    outside = trace.tracks["untrusted text"]
    assert set(outside[:observation]) == {0.0}
    assert set(outside[observation:]) == {1.0}
    assert trace.about["stopped"] == "finished"
    tokens = [count or 0 for count in trace.tracks["tokens"]]
    assert int(trace.about["total tokens"]) == tokens[-1] > 0
    assert tokens == sorted(tokens)
    for record, number in zip(hits, memory_steps, strict=True):
        why = record.explanation
        parts = (why.from_words, why.from_embeddings, why.from_neighbours, why.recency, why.importance)
        assert sum(parts) == pytest.approx(record.score)
        explanation = trace.steps[number].text.splitlines()[-1]
        for name in ("from_words", "from_neighbours", "recency", "importance"):
            assert f"{name} " in explanation


def test_what_was_blocked_says_why(tmp_path):
    replies = [call("look_up", topic="jays"), call("send_mail", text="acorns"), "enough", "I could not."]
    trace = trace_turn(run_agent(tmp_path, replies))
    blocked_step = next(step for step in trace.steps if step.choice == "blocked")
    assert "send_mail" in blocked_step.text or "outside" in blocked_step.text
    recalled_steps = {one.name: one.steps.tolist() for one in blocked_step.recalls}
    assert "send_mail" in trace.steps[recalled_steps["tool call"][0]].text
    (read,) = recalled_steps["untrusted text"]
    assert (trace.steps[read].choice, trace.steps[read].text) == ("observation", "Jays cache acorns.")
    assert (trace.about["blocked calls"], trace.about["untrusted text"]) == ("1", "yes")


def test_a_call_that_cannot_run_is_no_blocked_one(tmp_path):
    replies = [call("no_such_tool"), "enough", "I could not."]
    trace = trace_turn(run_agent(tmp_path, replies))
    assert [step.choice for step in trace.steps].count("fail") == 1
    assert (trace.about["blocked calls"], trace.about["untrusted text"]) == ("0", "no")


def test_a_document_is_in_view_from_the_beginning():
    model = ScriptedModel(replies=["enough", "Acorns."], binds=True)
    request = {"messages": "What do jays cache?", "knowledge": ["Jays cache acorns."]}
    trace = trace_turn(KwaiAgent(model, [send_mail]).invoke(request))
    assert set(trace.tracks["untrusted text"]) == {1.0}


def test_each_plan_leads_to_the_records_that_came_up_for_it(tmp_path):
    """Search results change after a step; records of the first plan alone are shown too."""

    class Bank(MemoryBank):
        num_searches = 0

        def search(self, *arguments, **options):
            self.num_searches += 1
            hits = super().search(*arguments, **options)
            return [hit for hit in hits if ("birds" in hit.text) == (self.num_searches > 1)]

    with Bank(tmp_path / "m.db") as bank:
        bank.add("Jays fly.")
        bank.add("Jays are birds.")
        model = ScriptedModel(replies=[call("look_up", topic="jays"), "enough", "Acorns."], binds=True)
        agent = KwaiAgent(model, [look_up], memory=bank)
        trace = trace_turn(agent.invoke("What are jays?"))
    plans = [step for step in trace.steps if step.choice in ("thinking", "conclusion")]
    recalled_steps = [one.steps.tolist() for step in plans for one in step.recalls if one.name == "memory"]
    record_texts = [
        [trace.steps[place].text.splitlines()[0] for place in places] for places in recalled_steps
    ]
    assert record_texts == [["Jays fly."], ["Jays are birds."], ["Jays are birds."]]


def test_a_notebook_shows_what_an_agent_returned(tmp_path):
    result = run_agent(tmp_path, [call("look_up", topic="jays"), "enough", "They cache acorns."])
    view = scrubjay.look(result)
    assert view.trace == trace_turn(result)
    assert view.trace.title == "What do jays cache?"
    assert "They cache acorns." in view._repr_html_()
    model = ScriptedModel(replies=["And hello.", "Hello again."], binds=True)
    first = KwaiAgent(model).invoke("Hi?")
    second = KwaiAgent(model).invoke({"messages": [*first["messages"], ("user", "And now?")]})
    assert scrubjay.look(second).trace.title == "And now?"
    with pytest.raises(ValueError, match="the keys answer, steps is not a result of KwaiAgent"):
        scrubjay.look({"answer": "", "steps": []})


def test_an_answer_without_tools_or_memory_is_a_turn_too():
    model = ScriptedModel(replies=["Hello."], binds=True)
    trace = trace_turn(KwaiAgent(model).invoke("Hi?"))
    assert trace.steps[0].text == "Hi?"
    assert not any(step.recalls for step in trace.steps)

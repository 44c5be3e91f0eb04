"""Questions with scripts of their answers, and agents that are asked them."""

from __future__ import annotations

from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent

from .replayable import assert_replayable
from .scripted import ScriptedModel, call, plan


@tool(side_effect=False)
def born(name: str) -> str:
    """Return the year in which somebody was born."""
    return {"Ada": "1815", "Alan": "1912"}[name]


NATIVE = [
    call("born", id="a", name="Ada"),
    call("born", id="b", said="Now the other one", name="Alan"),
    "I have both years.",
    "97 years apart.",
]
JSON = [
    plan("find Ada's year", "born", name="Ada"),
    plan("find Alan's year", "born", name="Alan"),
    plan("done", "task_complete", reason="both found"),
    "97 years apart.",
]
QUESTION = "How many years lie between Ada and Alan?"


def make(replies, tools=(born,), **options):
    """Return an agent and its model; one whose plans are JSON text has a model that cannot bind tools."""
    model = ScriptedModel(replies=list(replies), binds=not isinstance(replies[0], str))
    return KwaiAgent(model, tools, **options), model


@tool(side_effect=False)
def echo(text: str) -> str:
    """Say it again."""
    return text


def restless(messages):
    """Plan a new call for ever; answer when asked for the answer."""
    if "Write the answer" in messages[0].text:
        return f"Stopped: {messages[-1].text.splitlines()[-1]}"
    return call("echo", text=str(len(messages)))


def ask(rule=restless, **options):
    model = ScriptedModel(rule=rule)
    result = KwaiAgent(model, [echo], **options).invoke("Go on")
    assert_replayable(result["messages"])
    return result, model

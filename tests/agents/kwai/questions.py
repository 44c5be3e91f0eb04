"""Questions with scripted replies, and agents to ask."""

from __future__ import annotations

from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent

from .replayable import assert_replayable
from .scripted_model import ScriptedModel, call, plan


@tool(side_effect=False)
def birth_year(name: str) -> str:
    """Return a person's year of birth."""
    return {"Ada": "1815", "Alan": "1912"}[name]


NATIVE = [
    call("birth_year", id="a", name="Ada"),
    call("birth_year", id="b", reply_text="Now the other one", name="Alan"),
    "I have both years.",
    "97 years apart.",
]
JSON = [
    plan("find Ada's year", "birth_year", name="Ada"),
    plan("find Alan's year", "birth_year", name="Alan"),
    plan("done", "task_complete", reason="both found"),
    "97 years apart.",
]
QUESTION = "How many years lie between Ada and Alan?"


def make(replies, tools=(birth_year,), **options):
    """Return an agent and its model; the model cannot bind tools if the first reply is a JSON plan."""
    model = ScriptedModel(replies=list(replies), binds=not isinstance(replies[0], str))
    return KwaiAgent(model, tools, **options), model


@tool(side_effect=False)
def echo(text: str) -> str:
    """Repeat the text."""
    return text


def restless(messages):
    """Plan a new call each time; answer if asked for the answer."""
    if "Write the answer" in messages[0].text:
        return f"Stopped: {messages[-1].text.splitlines()[-1]}"
    return call("echo", text=str(len(messages)))


def ask(rule=restless, **options):
    model = ScriptedModel(rule=rule)
    result = KwaiAgent(model, [echo], **options).invoke("Go on")
    assert_replayable(result["messages"])
    return result, model

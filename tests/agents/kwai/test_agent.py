"""The agent as a runnable: inputs, outputs and invalid arguments."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage

from scrubjay.agents.kwai import KwaiAgent, Profile

from .questions import NATIVE, QUESTION, birth_year, make
from .scripted_model import ScriptedModel


def test_a_namespace_is_names_not_letters():
    with pytest.raises(TypeError, match=r"namespace='ada': .*\('ada',\)"):
        make(["Hi."], [], namespace="ada")
    with pytest.raises(TypeError, match="namespace='ada'"):
        make(["Hi."], [])[0].invoke("Hi", {"configurable": {"namespace": "ada"}})


def test_callbacks_see_every_model_and_tool_call_and_count_tokens():
    class RecordingHandler(BaseCallbackHandler):
        def __init__(self):
            self.names = []

        def on_chain_start(self, *args, **kwargs):
            self.names.append(kwargs["name"])

        def on_chat_model_start(self, *args, **kwargs):
            self.names.append("model")

        def on_tool_start(self, *args, **kwargs):
            self.names.append(args[0]["name"])

    handler, usage = RecordingHandler(), UsageMetadataCallbackHandler()
    result = make(NATIVE)[0].invoke(QUESTION, {"callbacks": [handler, usage]})
    names = [name for name in handler.names if name in ("KwaiAgent", "model", "birth_year")]
    assert names == ["KwaiAgent", "model", "birth_year", "model", "birth_year", "model", "model"]
    assert usage.usage_metadata["scripted"] == result["usage"]
    assert result["usage"]["total_tokens"] > 0


def test_a_batch_keeps_its_questions_apart():
    def answer(messages):
        question = messages[-1].text
        return f"about {question[-1]}"

    agent = KwaiAgent(ScriptedModel(rule=answer))
    answers = [result["answer"] for result in agent.batch([f"number {index}" for index in range(6)])]
    assert answers == [f"about {index}" for index in range(6)]


def test_it_composes_with_other_runnables():
    agent, _ = make(["Hello."], [])
    assert (agent | (lambda result: result["answer"].upper())).invoke("Hi") == "HELLO."


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda model: KwaiAgent(model, max_steps=0), ValueError, "max_steps=0"),
        (lambda model: KwaiAgent(model, planning="xml"), ValueError, "native, json"),
        (lambda model: KwaiAgent(model, [birth_year, birth_year]), ValueError, "'birth_year'"),
        (lambda model: KwaiAgent(model, [lambda x: x]), ValueError, "tool '<lambda>': .*docstring"),
        (lambda model: KwaiAgent(model, [birth_year], planning="native"), TypeError, "planning='json'"),
        (lambda model: KwaiAgent(model, profile=Profile(language="fr")), ValueError, "en, zh"),
        (lambda model: KwaiAgent(model).invoke([AIMessage("Hi")]), ValueError, "last message"),
        (lambda model: KwaiAgent(model).invoke(" "), ValueError, "question is empty"),
        (lambda model: KwaiAgent(model).invoke(None), TypeError, "input=None"),
        (
            lambda model: KwaiAgent(model).invoke({"messages": "Hi", "knowledge": 3}),
            TypeError,
            "knowledge=3",
        ),
        (
            lambda model: KwaiAgent(model).invoke({"messages": "Hi", "knowledge": [None]}),
            TypeError,
            "knowledge contains None",
        ),
        (lambda model: KwaiAgent(model).invoke({"question": "Hi"}), ValueError, "'messages'"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(build, error, words):
    with pytest.raises(error, match=words):
        build(ScriptedModel(binds=False))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "gpt-5"}, "model='gpt-5': pass a chat model"),
        ({"memory": "facts.db"}, "memory='facts.db': pass an object with add and search"),
        ({"profile": "Ada"}, "profile='Ada'"),
        ({"limits": {"tokens": 9}}, "limits={'tokens': 9}"),
        ({"approve": True}, "approve=True"),
        ({"clock": 3}, "clock=3"),
        ({"max_steps": "5"}, "max_steps='5'"),
        ({"recall_limit": 2.5}, "recall_limit=2.5"),
        ({"tools": birth_year}, "pass a list of tools"),
        ({"tools": "web"}, "tools='web': pass a list of tools"),
        ({"third_party_tools": ["web"]}, "third_party_tools contains 'web'"),
    ],
)
def test_what_is_of_another_kind_is_refused_before_anything_is_asked(options: dict[str, Any], words):
    model = ScriptedModel(replies=["Hello."], binds=False)
    with pytest.raises(TypeError, match=words):
        KwaiAgent(**{"model": model, **options})
    assert not model.prompts

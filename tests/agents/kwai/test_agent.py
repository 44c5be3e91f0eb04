"""The loop: what is asked in which order, what it returns, and to whom it shows it."""

from __future__ import annotations

import asyncio
import operator
from functools import reduce

import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool

from scrubjay.agents.kwai import KwaiAgent, Profile

from .replayable import assert_replayable
from .scripted import ScriptedModel, call, plan


@tool
def born(name: str) -> str:
    """Return the year in which somebody was born."""
    return {"Ada": "1815", "Alan": "1912"}[name]


@tool
async def abroad(name: str) -> str:
    """Return where somebody lived."""
    await asyncio.sleep(0)
    return f"{name} lived in London"


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


def added(parts):
    return reduce(operator.add, parts)


def comparable(result):
    """Return a result without what differs by run: ids and moments."""
    ids = {step.call_id: str(step.index) for step in result["steps"]}
    return {
        "messages": [
            (
                m.type,
                m.text.split("\n")[1:-1] if m.type == "tool" else m.text,
                [(c["name"], c["args"], ids[c["id"]]) for c in getattr(m, "tool_calls", [])],
                ids.get(getattr(m, "tool_call_id", "")),
            )
            for m in result["messages"]
        ],
        "steps": [(s.index, s.task_name, s.tool, s.arguments, s.result, s.status) for s in result["steps"]],
        "events": [(e.index, e.action, e.text) for e in result["events"]],
        "rest": [result[name] for name in ("answer", "stopped", "usage", "tainted")],
    }


@pytest.mark.parametrize("replies", [NATIVE, JSON], ids=["native", "json"])
def test_it_plans_runs_and_concludes(replies):
    agent, model = make(replies)
    result = agent.invoke(QUESTION)
    assert result["answer"] == "97 years apart." == result["messages"][-1].text
    assert result["stopped"] == "finished"
    assert [(step.tool, step.arguments, step.result) for step in result["steps"]] == [
        ("born", {"name": "Ada"}, "1815"),
        ("born", {"name": "Alan"}, "1912"),
    ]
    assert [message.type for message in result["messages"]] == ["human", "ai", "tool", "ai", "tool", "ai"]
    assert_replayable(result["messages"])
    assert len(model.sent) == 4  # at most max_steps plans, and one conclusion
    assert "1815" in str(model.sent[1])
    assert "1912" in str(model.sent[3])


@pytest.mark.parametrize("replies", [NATIVE, JSON], ids=["native", "json"])
def test_parts_of_a_stream_add_up_to_the_result(replies):
    whole = comparable(make(replies)[0].invoke(QUESTION))
    parts = list(make(replies)[0].stream(QUESTION))
    assert comparable(added(parts)) == whole
    assert [part["answer"] for part in parts if part.get("answer")] == ["97 ", "years ", "apart."]
    messages = []
    for part in parts:
        messages += part.get("messages", [])
        assert_replayable(messages)


@pytest.mark.parametrize("replies", [NATIVE, JSON], ids=["native", "json"])
def test_the_event_loop_gives_the_same(replies):
    async def both():
        streamed = [part async for part in make(replies)[0].astream(QUESTION)]
        return await make(replies)[0].ainvoke(QUESTION), added(streamed)

    whole = comparable(make(replies)[0].invoke(QUESTION))
    assert [comparable(result) for result in asyncio.run(both())] == [whole, whole]


def test_a_coroutine_serves_as_a_tool_on_the_event_loop():
    agent, _ = make([call("abroad", name="Ada"), "enough", "London."], [abroad])
    result = asyncio.run(agent.ainvoke("Where did Ada live?"))
    assert result["steps"][0].result == "Ada lived in London"


def test_a_tool_that_is_a_coroutine_alone_runs_without_an_event_loop_too():
    """As the tools of MCP servers are."""
    agent, _ = make([call("abroad", name="Ada"), "enough", "London."], [abroad])
    assert agent.invoke("Where did Ada live?")["steps"][0].result == "Ada lived in London"

    async def inside():
        return make([call("abroad", name="Ada"), "enough", "London."], [abroad])[0].invoke("Where?")

    assert asyncio.run(inside())["steps"][0].status == "success"


def test_a_namespace_is_names_not_letters():
    with pytest.raises(TypeError, match=r"namespace='ada': .*\('ada',\)"):
        make(["Hi."], [], namespace="ada")
    with pytest.raises(TypeError, match="namespace='ada'"):
        make(["Hi."], [])[0].invoke("Hi", {"configurable": {"namespace": "ada"}})


def test_without_tools_nothing_is_planned():
    agent, model = make(["Hello."], [])
    assert agent.invoke("Hi")["answer"] == "Hello."
    assert len(model.sent) == 1


def test_words_in_place_of_a_first_plan_are_the_answer():
    agent, model = make([AIMessage("Hello, Ada.")])
    result = agent.invoke("Hi")
    assert result["answer"] == "Hello, Ada."
    assert len(model.sent) == 1


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
    opened = [(event.action, event.text) for event in events if event.action in ("reading", "click")]
    assert opened == [("reading", "https://a.example"), ("click", "https://b.example")]


def test_callbacks_see_every_model_and_tool_call_and_count_tokens():
    class Heard(BaseCallbackHandler):
        def __init__(self):
            self.names = []

        def on_chain_start(self, serialized, inputs, **kwargs):
            self.names.append(kwargs["name"])

        def on_chat_model_start(self, serialized, messages, **kwargs):
            self.names.append("model")

        def on_tool_start(self, serialized, input_str, **kwargs):
            self.names.append(serialized["name"])

    heard, usage = Heard(), UsageMetadataCallbackHandler()
    result = make(NATIVE)[0].invoke(QUESTION, {"callbacks": [heard, usage]})
    names = [name for name in heard.names if name in ("KwaiAgent", "model", "born")]
    assert names == ["KwaiAgent", "model", "born", "model", "born", "model", "model"]
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


def test_it_sees_the_conversation_and_the_knowledge_supplied():
    agent, model = make(["In 1815."], [])
    history = [("user", "I am Ada."), ("ai", "Hello, Ada."), ("user", "When was I born?")]
    knowledge = [Document("Ada: born 1815"), "Alan: born 1912"]
    agent.invoke({"messages": history, "knowledge": knowledge})
    system, told, said, asked = model.sent[0]
    assert (told.text, said.text) == ("I am Ada.", "Hello, Ada.")
    assert "Ada: born 1815" in asked.text
    assert "Alan: born 1912" in asked.text
    assert "1815" not in system.text


def test_attachments_reach_the_model():
    agent, model = make(["A jay."], [])
    picture = {"type": "image", "url": "https://a.example/jay.png"}
    agent.invoke([HumanMessage([{"type": "text", "text": "What bird is this?"}, picture])])
    assert picture in list(model.sent[0][-1].content)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_profile_leads_every_prompt_in_its_language(language):
    profile = Profile("Mei", "A librarian.", "Be brief.", language)
    agent, model = make(NATIVE, profile=profile)
    agent.invoke(QUESTION)
    for prompt in model.sent:
        assert [message.type for message in prompt].count("system") == 1
        assert all(words in prompt[0].text for words in ("Mei", "A librarian.", "Be brief."))
        assert ("你是" in prompt[0].text) == (language == "zh")


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda model: KwaiAgent(model, max_steps=0), ValueError, "max_steps=0"),
        (lambda model: KwaiAgent(model, planning="xml"), ValueError, "native, json"),
        (lambda model: KwaiAgent(model, [born, born]), ValueError, "'born'"),
        (lambda model: KwaiAgent(model, [born], planning="native"), TypeError, "planning='json'"),
        (lambda model: KwaiAgent(model, profile=Profile(language="fr")), ValueError, "en, zh"),
        (lambda model: KwaiAgent(model).invoke([AIMessage("Hi")]), ValueError, "last message"),
        (lambda model: KwaiAgent(model).invoke(" "), ValueError, "question is empty"),
        (lambda model: KwaiAgent(model).invoke(None), TypeError, "the input is None"),
        (
            lambda model: KwaiAgent(model).invoke({"messages": "Hi", "knowledge": [None]}),
            TypeError,
            "knowledge holds None",
        ),
        (lambda model: KwaiAgent(model).invoke({"question": "Hi"}), ValueError, "'messages'"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(build, error, words):
    with pytest.raises(error, match=words):
        build(ScriptedModel(binds=False))

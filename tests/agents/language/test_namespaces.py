"""Namespace templates are filled at each call, in all objects that take a namespace."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.graph import START, StateGraph

from scrubjay.agents.kwai import KwaiAgent
from scrubjay.agents.langchain import (
    BankChatMessageHistory,
    BankMiddleware,
    BankRetriever,
    BankStore,
    memory_tools,
)
from scrubjay.agents.language.namespaces import check_template, escape_namespace, fill_template
from scrubjay.memory import MemoryBank

from ..kwai.scripted_model import ScriptedModel, call

pytestmark = pytest.mark.requires("langchain", "langgraph")

USER = ("user", "{user_id}")


@dataclass
class Who:
    user_id: str


@pytest.fixture
def bank():
    with MemoryBank(":memory:") as bank:
        yield bank


def config(user: Any) -> Any:
    return {"configurable": {"user_id": user}}


def asking(text: str) -> Any:
    return {"messages": [HumanMessage(text)]}


def namespaces_of_texts(bank: MemoryBank) -> dict[str, tuple[str, ...]]:
    return {record.text: record.namespace for record in bank.recent(50)}


def test_the_middleware_keeps_users_apart_by_config(bank):
    model = ScriptedModel(replies=["Noted.", "I do not know.", "1815."])
    agent: Any = create_agent(model, middleware=[BankMiddleware(bank, USER)])
    agent.invoke(asking("My secret number is 1815."), config("ada"))
    agent.invoke(asking("What is my secret number?"), config("bob"))
    assert "1815" not in model.prompts[1][-1].text
    agent.invoke(asking("What is my secret number?"), config("ada"))
    assert "1815" in model.prompts[2][-1].text
    assert set(namespaces_of_texts(bank).values()) == {("user", "ada"), ("user", "bob")}


@pytest.mark.parametrize("context", [Who("ada"), {"user_id": "ada"}])
def test_the_middleware_takes_the_context_of_the_graph(bank, context):
    agent: Any = create_agent(
        ScriptedModel(replies=["Noted."]), middleware=[BankMiddleware(bank, USER)], context_schema=Who
    )
    agent.invoke(asking("I like figs."), context=context)
    assert set(namespaces_of_texts(bank).values()) == {("user", "ada")}


async def test_the_middleware_does_so_on_the_event_loop(bank):
    agent: Any = create_agent(ScriptedModel(replies=["Noted."]), middleware=[BankMiddleware(bank, USER)])
    await agent.ainvoke(asking("I like figs."), config("ada"))
    assert set(namespaces_of_texts(bank).values()) == {("user", "ada")}


def test_a_template_that_nothing_fills_is_an_error_and_nothing_is_written(bank):
    agent: Any = create_agent(ScriptedModel(replies=["Noted."]), middleware=[BankMiddleware(bank, USER)])
    with pytest.raises(KeyError, match=r"\{user_id\}.*no value for 'user_id'.*configurable"):
        agent.invoke(asking("I like figs."))
    assert namespaces_of_texts(bank) == {}


@pytest.mark.parametrize("by_context", [False, True])
def test_memory_tools_read_and_write_for_who_asks(bank, by_context):
    save, search = call("save_memory", text="Likes figs."), call("search_memory", query="figs")
    model = ScriptedModel(replies=[save, "Saved.", search, "None.", search, "Figs."])
    agent: Any = create_agent(model, memory_tools(bank, USER), context_schema=Who)

    def ask(text: str, user: str) -> str:
        options = {"context": Who(user)} if by_context else {"config": config(user)}
        return agent.invoke(asking(text), **options)["messages"][-2].text

    ask("Remember that I like figs.", "ada")
    assert namespaces_of_texts(bank) == {"Likes figs.": ("user", "ada")}
    assert ask("What do I like?", "bob") == "Nothing is remembered about that."
    assert "Likes figs." in ask("What do I like?", "ada")


async def test_memory_tools_alone_take_the_config_of_their_call(bank):
    search, save, update, forget = memory_tools(bank, USER)
    save.invoke({"text": "Likes figs."}, config("ada"))
    await save.ainvoke({"text": "Likes dates."}, config("bob"))
    assert namespaces_of_texts(bank) == {"Likes figs.": ("user", "ada"), "Likes dates.": ("user", "bob")}
    (ada,) = (record.id for record in bank.recent(9) if record.namespace == ("user", "ada"))
    assert "no memory" in forget.invoke({"id": ada}, config("bob"))
    assert "no memory" in update.invoke({"id": ada, "text": "Likes nothing."}, config("bob"))
    assert "figs" not in search.invoke({"query": "figs"}, config("bob"))
    assert "Forgot" in forget.invoke({"id": ada}, config("ada"))
    with pytest.raises(KeyError, match="user_id"):
        save.invoke({"text": "Likes figs."})


async def test_a_retriever_finds_for_who_asks_in_a_chain_too(bank):
    for user in ("ada", "bob"):
        bank.add(f"{user} likes figs.", namespace=("user", user))
    retriever = BankRetriever(bank=bank, namespace=USER)
    chain = RunnableLambda(lambda question: question) | retriever
    for finder in (retriever, chain):
        assert [d.page_content for d in finder.invoke("figs", config("ada"))] == ["ada likes figs."]
        assert [d.page_content for d in await finder.ainvoke("figs", config("bob"))] == ["bob likes figs."]
        results = finder.batch(["figs", "figs"], [config("ada"), config("bob")])
        assert [d[0].page_content for d in results] == ["ada likes figs.", "bob likes figs."]
    assert len(BankRetriever(bank=bank).invoke("figs")) == 2
    assert len(retriever.invoke("figs", namespace=None)) == 2
    assert [d.page_content for d in retriever.invoke("figs", namespace=("user", "bob"))] == [
        "bob likes figs."
    ]
    with pytest.raises(KeyError, match="user_id"):
        retriever.invoke("figs")


class SearchState(TypedDict):
    results: list[str]


def test_a_retriever_in_a_graph_takes_its_context(bank):
    bank.add("Ada likes figs.", namespace=("user", "ada"))
    retriever = BankRetriever(bank=bank, namespace=USER)

    def look(state: SearchState) -> SearchState:
        return {"results": [document.page_content for document in retriever.invoke("figs")]}

    graph: Any = (
        StateGraph(SearchState, context_schema=Who).add_node("look", look).add_edge(START, "look").compile()
    )
    assert graph.invoke({"results": []}, context=Who("ada")) == {"results": ["Ada likes figs."]}
    assert graph.invoke({"results": []}, context=Who("bob")) == {"results": []}


def test_a_history_is_of_who_it_was_opened_for(bank):
    BankChatMessageHistory(bank, "t", USER, config("ada")).add_messages([HumanMessage("I like figs.")])
    assert BankChatMessageHistory(bank, "t", USER, config("bob")).messages == []
    history_reader = RunnableLambda(lambda thread: BankChatMessageHistory(bank, str(thread), USER).messages)
    assert [m.text for m in history_reader.invoke("t", config("ada"))] == ["I like figs."]
    assert namespaces_of_texts(bank) == {"I like figs.": ("user", "ada")}
    with pytest.raises(KeyError, match="user_id"):
        _ = BankChatMessageHistory(bank, "t", USER).messages


@pytest.mark.parametrize("outer", [None, "ada"])
async def test_a_history_of_a_runnable_is_of_who_calls_that(bank, outer):
    """RunnableWithMessageHistory creates the history before the call's config is current."""
    chain = RunnableWithMessageHistory(
        RunnableLambda(lambda messages: AIMessage("ok")),
        lambda session_id: BankChatMessageHistory(bank, session_id, USER),
    )
    own: Any = {"configurable": {"session_id": "t", "user_id": "bob"}}
    if outer is None:
        chain.invoke([HumanMessage("hi")], own)
        await chain.ainvoke([HumanMessage("hello")], own)
    else:
        RunnableLambda(lambda text: chain.invoke([HumanMessage(str(text))], own)).invoke("hi", config(outer))
    assert set(namespaces_of_texts(bank).values()) == {("user", "bob")}


async def test_the_kwai_agent_remembers_for_who_asks(bank):
    agent = KwaiAgent(ScriptedModel(replies=["Noted.", "Noted."]), memory=bank, namespace=USER)
    agent.invoke("I like figs.", config("ada"))
    await agent.ainvoke("I like dates.", config("bob"))
    assert set(namespaces_of_texts(bank).values()) == {("user", "ada"), ("user", "bob")}
    with pytest.raises(KeyError, match="user_id"):
        KwaiAgent(ScriptedModel(replies=["Noted."]), memory=bank, namespace=USER).invoke("I like figs.")


def test_tools_of_the_kwai_agent_know_who_asks(bank):
    model = ScriptedModel(replies=[call("save_memory", text="Likes figs."), "Saved.", "Saved."])
    agent = KwaiAgent(model, memory_tools(bank, USER))
    agent.invoke("Remember that I like figs.", config("ada"))
    assert namespaces_of_texts(bank) == {"Likes figs.": ("user", "ada")}


def test_a_tool_of_the_kwai_agent_that_cannot_know_who_asks_is_the_callers_error(bank):
    model = ScriptedModel(replies=[call("save_memory", text="Likes figs."), "Saved.", "Saved."])
    with pytest.raises(KeyError, match="user_id"):
        KwaiAgent(model, memory_tools(bank, USER)).invoke("Remember that I like figs.")


def test_what_a_call_passes_is_taken_literally(bank):
    """A user's name must not be read as a template of another's namespace."""
    odd = ("user", "{x")
    middleware = BankMiddleware(bank, lambda runtime: odd)
    agent: Any = create_agent(ScriptedModel(replies=["Noted."]), middleware=[middleware])
    agent.invoke(asking("I like figs."), config("ada"))
    assert set(namespaces_of_texts(bank).values()) == {odd}
    assert BankRetriever(bank=bank).invoke("figs", namespace=odd)
    kwai = KwaiAgent(ScriptedModel(replies=["Noted."]), memory=bank)
    kwai.invoke("I like dates.", {"configurable": {"namespace": odd}})
    assert set(namespaces_of_texts(bank).values()) == {odd}
    bank.add("Alice's secret", namespace=("user", "alice"))
    template_config: Any = {"configurable": {"owner": "alice", "namespace": ("user", "{owner}")}}
    with pytest.raises(ValueError, match="must not be a template"):
        BankRetriever(bank=bank).invoke("secret", template_config, namespace=("user", "{owner}"))
    with pytest.raises(ValueError, match="must not be a template"):
        kwai.invoke("What is the secret?", template_config)
    forgetful: Any = create_agent(
        ScriptedModel(replies=["Noted."]), middleware=[BankMiddleware(bank, lambda runtime: USER)]
    )
    with pytest.raises(ValueError, match="must not be a template"):
        forgetful.invoke(asking("I like figs."), config("ada"))


def test_keys_of_the_store_stay_literal(bank):
    store = BankStore(bank)
    store.put(USER, "k", {"text": "I like figs."})
    assert store.list_namespaces() == [USER]
    assert [item.key for item in store.search(USER)] == ["k"]


def test_filling():
    number = uuid.uuid4()
    assert fill_template(
        ("a", "user-{user_id}", "{thread}"), {"configurable": {"user_id": 7, "thread": number}}
    ) == (
        "a",
        "user-7",
        str(number),
    )
    assert fill_template(USER, config("{thread_id}")) == ("user", "{thread_id}")  # a value is not a template
    assert fill_template(USER, config(None), Who("ada")) == ("user", "ada")
    assert fill_template(USER, config("ada"), Who("ada")) == ("user", "ada")
    assert fill_template(("{{user_id}}",)) == ("{user_id}",)
    assert fill_template(escape_namespace(("a{b}", "{", "}}"))) == ("a{b}", "{", "}}")
    with pytest.raises(ValueError, match="'ada' in the config and 'bob' in the context"):
        fill_template(USER, config("ada"), Who("bob"))
    for value in ("", "a\x1fb"):
        with pytest.raises(ValueError, match="non-empty"):
            fill_template(USER, config(value))
    for wrong in (True, ["ada"], 1.5):
        with pytest.raises(TypeError, match="pass a string"):
            fill_template(USER, config(wrong))
    with pytest.raises(KeyError, match="no value for 'user_id'"):
        fill_template(USER, {}, object())


@pytest.mark.parametrize(
    "part",
    ["{", "a}", "{}", "{0}", "{user.id}", "{user[id]}", "{user_id!r}", "{user_id:>9}", "{_x}", "{__class__}"],
)
def test_what_is_no_template_is_refused_when_it_is_given(bank, part):
    makers = (
        lambda: check_template(("user", part)),
        lambda: BankMiddleware(bank, ("user", part)),
        lambda: memory_tools(bank, ("user", part)),
        lambda: BankRetriever(bank=bank, namespace=("user", part)),
        lambda: BankChatMessageHistory(bank, "t", ("user", part)),
        lambda: KwaiAgent(ScriptedModel(replies=[]), namespace=("user", part)),
    )
    for make in makers:
        with pytest.raises(ValueError, match="double every literal brace"):
            make()

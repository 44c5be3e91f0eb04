"""The agent's memory: updates, searches and namespaces."""

from __future__ import annotations

import asyncio
import re

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool as langchain_tool

from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent, Limits
from scrubjay.agents.language.text import estimate_tokens
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.record import MAX_TEXT_LENGTH

from .scripted_model import ScriptedModel, call


@tool(side_effect=False)
def weather(city: str) -> str:
    """Return the weather."""
    return f"rain in {city}"


class RecordingBank(MemoryBank):
    """Memory bank that records the order of calls."""

    def __init__(self):
        super().__init__(":memory:")
        self.calls = []

    def add(self, text, *args, **kwargs):
        self.calls.append(("add", kwargs["kind"], text))
        return super().add(text, *args, **kwargs)

    def search(self, query, *args, **kwargs):
        self.calls.append(("search", query))
        return super().search(query, *args, **kwargs)


def test_it_writes_the_question_once_and_looks_up_before_every_plan():
    with RecordingBank() as bank:
        model = ScriptedModel(
            replies=[call("weather", reply_text="look outside", city="Bern"), "ok", "Rain."]
        )
        KwaiAgent(model, [weather], memory=bank).invoke(
            {"messages": "Umbrella?", "knowledge": "Bern is wet."}
        )
        assert bank.calls == [
            ("add", "knowledge", "Bern is wet."),
            ("add", "conversation", "Umbrella?"),
            ("search", "Umbrella?"),
            ("add", "task", "look outside\nrain in Bern"),
            ("search", "Umbrella?\nlook outside"),
            ("add", "conversation", "Rain."),
        ]


def test_two_equal_turns_stay_two_and_a_finding_stays_one():
    with MemoryBank(":memory:") as bank:
        for _ in range(2):
            model = ScriptedModel(replies=[call("weather", reply_text="look", city="Bern"), "ok", "Rain."])
            KwaiAgent(model, [weather], memory=bank).invoke("Umbrella?")
        texts = [record.text for record in bank.recent(9, kind="conversation")]
        (task,) = bank.recent(9, kind="task")
    assert texts == ["Umbrella?", "Rain.", "Umbrella?", "Rain."]
    assert task.sayings == 2


def test_what_was_said_long_ago_comes_back():
    with MemoryBank(":memory:") as bank:
        agent = KwaiAgent(ScriptedModel(rule=lambda messages: "Noted."), memory=bank)
        agent.invoke("My sister Vera lives in Lisbon.")
        for number in range(30):
            agent.invoke(f"Remark {number} about nothing in particular.")
        model = ScriptedModel(replies=["In Lisbon."])
        KwaiAgent(model, memory=bank).invoke("Where does my sister live?")
    assert "Vera lives in Lisbon" in model.prompts[0][-1].text


def test_trust_says_who_worded_a_record():
    with MemoryBank(":memory:") as bank:
        model = ScriptedModel(replies=["Hello, Ada.", call("weather", city="Bern"), "ok", "Rain, they say."])
        KwaiAgent(model, memory=bank).invoke("I am Ada.")
        KwaiAgent(model, [weather], memory=bank).invoke("Umbrella?")
        trust = {record.text: (record.kind, record.trust) for record in bank.recent(9)}
        (task,) = bank.recent(1, kind="task")
    assert trust == {
        "I am Ada.": ("conversation", "user"),
        "Hello, Ada.": ("conversation", "agent"),
        "Umbrella?": ("conversation", "user"),
        "weather\nrain in Bern": ("task", "tool"),
        "Rain, they say.": ("conversation", "tool"),
    }
    assert task.provenance["tool"] == "weather"


def test_a_failure_is_not_remembered():
    @langchain_tool
    def fail() -> str:
        """Fail."""
        raise RuntimeError("wires crossed")

    with MemoryBank(":memory:") as bank:
        KwaiAgent(ScriptedModel(replies=[call("fail"), "no", "Unknown."]), [fail], memory=bank).invoke("Try")
        assert not bank.recent(9, kind="task")


def test_that_there_is_no_answer_is_not_remembered():
    with MemoryBank(":memory:") as bank:
        result = KwaiAgent(ScriptedModel(replies=["", " "]), memory=bank).invoke("Who is Ada?")
        assert result["messages"][-1].text
        assert [record.text for record in bank.recent(9)] == ["Who is Ada?"]


def test_users_do_not_see_each_other_s_memories():
    with MemoryBank(":memory:") as bank:
        model = ScriptedModel(rule=lambda messages: "Fine.")
        agent = KwaiAgent(model, memory=bank, namespace=("user", "ada"))
        bob: RunnableConfig = {"configurable": {"namespace": ("user", "bob"), "thread_id": "t1"}}
        agent.invoke("The code of the safe is 4711.")
        agent.invoke("What is the code of the safe?", bob)
        agent.invoke("What is the code of the safe?")
        assert bank.recent(1, namespace=("user", "bob"))[0].provenance["thread"] == "t1"
    in_prompt = ["4711" in prompt[-1].text for prompt in model.prompts]
    assert in_prompt == [True, False, True]


def test_what_the_conversation_shows_is_not_recalled_again():
    with MemoryBank(":memory:") as bank:
        model = ScriptedModel(rule=lambda messages: "Hello, Ada.")
        agent = KwaiAgent(model, memory=bank)
        first = agent.invoke("I am Ada.")
        agent.invoke([*first["messages"], ("user", "Who is Ada?")])
    assert "remembered" not in model.prompts[1][-1].text
    assert model.prompts[1][-1].text.endswith("Who is Ada?")


def test_the_event_loop_remembers_too():
    with MemoryBank(":memory:") as bank:
        asyncio.run(KwaiAgent(ScriptedModel(replies=["Hi."]), memory=bank).ainvoke("Hello"))
        assert [record.text for record in bank.recent(9)] == ["Hello", "Hi."]


@pytest.mark.slow
def test_a_turn_that_is_no_longer_shown_is_recalled_and_the_prompt_stays_bounded():
    talk = [f"It rained on the {number}th of them." for number in range(200)]
    talk[2], talk[199] = "Vera lives in Lisbon.", "Where does Vera live?"
    limits = Limits(context_tokens=400)
    with MemoryBank(":memory:") as bank:
        model = ScriptedModel(rule=lambda messages: "I see.")
        agent = KwaiAgent(model, memory=bank, limits=limits)
        messages = []
        for text in talk:
            messages = agent.invoke([*messages, ("user", text)])["messages"]
    costs = [sum(estimate_tokens(message.text) for message in prompt) for prompt in model.prompts]
    assert max(costs) <= 400
    assert "- user: Vera lives in Lisbon." in model.prompts[-1][-1].text
    assert "[left out for lack of room: " in model.prompts[-1][-1].text
    assert "Vera" not in "".join(message.text for message in model.prompts[-1][:-1])


def test_the_agent_s_own_answers_do_not_crowd_out_what_it_was_told():
    with MemoryBank(":memory:") as bank:
        for number in range(12):
            bank.add(f"Vera, Vera, where does Vera live? {number}", trust="agent", merge=False)
        bank.add("Vera has settled in Lisbon.")
        bank.add("Vera has settled in Lisbon.", merge=False)
        bank.add("Vera's letters come from Portugal.", trust="agent", kind="task")
        model = ScriptedModel(rule=lambda messages: "In Lisbon.")
        result = KwaiAgent(model, memory=bank).invoke("Where does Vera live?")
    recalled_texts = [record.text for record in result["recalled"]]
    assert recalled_texts.count("Vera has settled in Lisbon.") == 1
    assert "Vera's letters come from Portugal." in recalled_texts
    assert sum("Vera, Vera" in text for text in recalled_texts) == 2


@pytest.mark.parametrize("ending", ["?", "？ "])
def test_questions_asked_before_do_not_crowd_out_what_was_said(ending):
    with MemoryBank(":memory:") as bank:
        for number in range(12):
            bank.add(f"{number}: where does Vera live{ending}", merge=False)
        bank.add("Vera has settled in Lisbon, they say.")
        model = ScriptedModel(rule=lambda messages: "In Lisbon.")
        result = KwaiAgent(model, memory=bank).invoke("Where does Vera live?")
    recalled_texts = [record.text for record in result["recalled"]]
    assert "Vera has settled in Lisbon, they say." in recalled_texts
    assert sum("where does" in text for text in recalled_texts) == 2


@pytest.mark.slow
def test_what_is_too_long_for_the_bank_is_cut_there_and_says_so():
    passage = "needle " + "hay " * (MAX_TEXT_LENGTH // 4)
    with MemoryBank(":memory:") as bank:
        model = ScriptedModel(replies=["Yes. " + passage])
        limits = Limits(result_tokens=10**7)
        KwaiAgent(model, [weather], memory=bank, limits=limits).invoke(
            {"messages": "Needle?", "knowledge": passage}
        )
        knowledge, question, answer = bank.recent(9)
        assert question.text == "Needle?"
        for record, whole in ((knowledge, passage.strip()), (answer, f"Yes. {passage}".strip())):
            head, _, note = record.text.rpartition("\n")
            assert whole.startswith(head)
            assert len(record.text) <= MAX_TEXT_LENGTH
            assert note == f"[... {len(whole) - len(head)} characters cut]"


def test_a_picture_in_a_question_is_named_in_the_memory():
    picture = {"type": "image", "url": "https://a.example/jay.png"}
    with MemoryBank(":memory:") as bank:
        agent = KwaiAgent(ScriptedModel(replies=["A jay."]), memory=bank)
        agent.invoke([HumanMessage([{"type": "text", "text": "Which bird?"}, picture])])
        texts = [record.text for record in bank.recent(9)]
    assert texts == ["Which bird?\n[left out, because only text is read: image]", "A jay."]


def test_marks_that_a_model_copies_into_its_answer_are_not_stored():
    def copy_marks(messages):
        marks = [line for line in messages[-1].text.splitlines() if line.startswith("<<<END")]
        return f"{marks[0]}\nIt rains.\n{marks[0][:9]}"

    with MemoryBank(":memory:") as bank:
        bank.add("A page says that it rains.", trust="tool")
        result = KwaiAgent(ScriptedModel(rule=copy_marks), memory=bank).invoke("Does it rain?")
        assert result["answer"].startswith("<<<END")
        assert bank.recent(1)[0].text == "It rains."


def test_an_outdated_fact_is_marked_behind_the_newer_one():
    with MemoryBank(":memory:") as bank:
        for day, company in (("2025-01-01", "Acme"), ("2025-06-01", "Globex")):
            bank.add(f"Ada works at {company}.", observed=day)
            bank.add(f"Ben works at {company}.", observed=day, trust="tool")
        model = ScriptedModel(replies=["ok", "Globex."])
        KwaiAgent(model, [], memory=bank).invoke({"messages": "Did Ada or Ben work at Acme?"})
        prompt = "\n".join(str(message.content) for message in model.prompts[0])
    new, old = "- user: Ada works at Globex.", "- user: Ada works at Acme. [no longer true]"
    assert f"{new}\n" in prompt
    assert prompt.index(new) < prompt.index(old)
    assert re.search(r"DATA from memory conversation \w+ \(tool\) \w+>>>\nBen works at Globex\.", prompt)
    assert re.search(
        r"DATA from outdated memory conversation \w+ \(tool\) \w+>>>\nBen works at Acme\.", prompt
    )

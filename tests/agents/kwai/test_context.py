"""Prompts of the agent: within the token budget, with a stable beginning."""

from __future__ import annotations

import itertools

import pytest
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage

from scrubjay.agents.kwai import KwaiAgent, Limits, Profile
from scrubjay.agents.kwai.context import split_passages
from scrubjay.agents.language.text import estimate_tokens
from scrubjay.memory import MemoryBank

from .questions import NATIVE, QUESTION, echo, make
from .scripted_model import ScriptedModel, call


def test_it_sees_the_conversation_and_the_knowledge_supplied():
    agent, model = make(["In 1815."], [])
    history = [("user", "I am Ada."), ("ai", "Hello, Ada."), ("user", "When was I born?")]
    knowledge = [Document("Ada: born 1815"), "Alan: born 1912"]
    agent.invoke({"messages": history, "knowledge": knowledge})
    system, first_user, first_answer, question = model.prompts[0]
    assert (first_user.text, first_answer.text) == ("I am Ada.", "Hello, Ada.")
    assert "Ada: born 1815" in question.text
    assert "Alan: born 1912" in question.text
    assert "1815" not in system.text


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_knowledge_keeps_its_lines_and_their_indentation(line_end):
    code = "def f():\n    a = 1\n\n    return a\n\n\n\t# end\n"
    agent, model = make(["Yes."], [])
    knowledge = Document(code.replace("\n", line_end))
    agent.invoke({"messages": "Does it return?", "trusted_knowledge": [knowledge]})
    prompt = model.prompts[0][-1].text
    for line in filter(str.strip, code.splitlines()):
        assert f"\n{line}\n" in prompt
    assert split_passages(code, 4, estimate_tokens) == ["def f():\n    a = 1", "    return a", "\t# end"]


def test_attachments_reach_the_model():
    agent, model = make(["A jay."], [])
    picture = {"type": "image", "url": "https://a.example/jay.png"}
    agent.invoke([HumanMessage([{"type": "text", "text": "What bird is this?"}, picture])])
    assert picture in list(model.prompts[0][-1].content)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_profile_leads_every_prompt_in_its_language(language):
    profile = Profile("Mei", "A librarian.", "Be brief.", language)
    agent, model = make(NATIVE, profile=profile)
    agent.invoke(QUESTION)
    for prompt in model.prompts:
        assert [message.type for message in prompt].count("system") == 1
        assert all(words in prompt[0].text for words in ("Mei", "A librarian.", "Be brief."))
        assert ("你是" in prompt[0].text) == (language == "zh")


@pytest.mark.parametrize("binds", [True, False])
def test_a_prompt_never_exceeds_its_budget(binds):
    budget = 1_500

    def rule(messages):
        prompt_tokens = sum(estimate_tokens(message.text) for message in messages)
        assert prompt_tokens <= budget, messages
        if "Write the answer" in messages[0].text:
            return "Done."
        number = len(model.prompts)
        if binds:
            return call("echo", id=str(number), text=f"{number} " + "word " * 250)
        return (
            '{"task_name": "n", "command": {"name": "echo", '
            f'"args": {{"text": "{number} {"word " * 250}"}}}}}}'
        )

    model = ScriptedModel(rule=rule, binds=binds)
    history = [("user" if turn % 2 == 0 else "ai", f"turn {turn} " + "talk " * 40) for turn in range(30)]
    limits = Limits(context_tokens=budget)
    agent = KwaiAgent(model, [echo], limits=limits, max_steps=8)
    result = agent.invoke([*history, ("user", "Go on")])
    assert len(result["steps"]) == 8
    assert "left out" in str(model.prompts[-1])


def test_a_question_that_cannot_fit_is_refused_by_name():
    with pytest.raises(ValueError, match=r"context_tokens=300.*raise Limits\.context_tokens"):
        KwaiAgent(ScriptedModel(), [echo], limits=Limits(context_tokens=300)).invoke("why " * 1000)


@pytest.mark.parametrize(
    ("language", "note"), [("en", "2 earlier turns and 1 memories"), ("zh", "2 轮更早的对话、1 条记忆")]
)
def test_what_is_left_out_is_told_in_the_language_of_the_prompts(language, note):
    with MemoryBank(":memory:") as bank:
        bank.add("lamp " * 400, kind="knowledge")
        model = ScriptedModel(rule=lambda messages: "Hm.")
        limits = Limits(context_tokens=300, dialogue_tokens=1)
        agent = KwaiAgent(model, profile=Profile(language=language), memory=bank, limits=limits)
        agent.invoke([("user", "Hello there"), ("ai", "Good day"), ("user", "Where is the lamp?")])
    assert note in model.prompts[0][-1].text


def test_a_knowledge_document_is_shown_in_whole_passages_and_kept():
    document = "\n\n".join(f"Paragraph {number}: " + "words " * 300 for number in range(100))
    with MemoryBank(":memory:") as bank:
        model = ScriptedModel(replies=["Much."])
        KwaiAgent(model, memory=bank).invoke(
            {"messages": "What is in paragraph 99?", "knowledge": [document]}
        )
        assert len(bank.recent(999, kind="knowledge")) > 10
    assert "left out" in model.prompts[0][-1].text
    assert "Paragraph 0" in model.prompts[0][-1].text


def test_prompts_begin_alike_from_one_question_to_the_next():
    model = ScriptedModel(rule=lambda messages: "I see.")
    agent = KwaiAgent(model, limits=Limits(context_tokens=400))
    messages = []
    for number in range(100):
        messages = agent.invoke([*messages, ("user", f"It rained on the {number}th of them.")])["messages"]
    heads = [[message.text for message in prompt[:-1]] for prompt in model.prompts]
    same_beginning = [after[: len(before)] == before for before, after in itertools.pairwise(heads)]
    # When the window moves, it moves by several turns.
    assert same_beginning.count(False) < len(same_beginning) / 3
    assert all(len(head) > 5 for head in heads[20:])


def test_no_earlier_turns_are_shown_where_none_are_wanted():
    model = ScriptedModel(rule=lambda messages: "I see.")
    agent = KwaiAgent(model, limits=Limits(dialogue_tokens=1))
    first = agent.invoke("I am Ada.")
    agent.invoke([*first["messages"], ("user", "Who am I?")])
    assert [message.type for message in model.prompts[1]] == ["system", "human"]
    assert "2 earlier turns" in model.prompts[1][-1].text


@pytest.mark.parametrize(
    ("kind", "trust", "line"),
    [
        ("conversation", "user", "- user: The key is under the mat."),
        ("conversation", "agent", "- you: The key is under the mat."),
        ("knowledge", "user", "- The key is under the mat."),
        ("task", "agent", "- The key is under the mat."),
    ],
)
def test_a_record_that_nobody_outside_worded_is_shown_plainly(kind, trust, line):
    with MemoryBank(":memory:") as bank:
        bank.add("The key is under the mat.", kind=kind, trust=trust)
        model = ScriptedModel(replies=["Under the mat."])
        KwaiAgent(model, memory=bank).invoke("Where is the key?")
    assert line in model.prompts[0][-1].text.splitlines()
    assert "DATA" not in model.prompts[0][-1].text

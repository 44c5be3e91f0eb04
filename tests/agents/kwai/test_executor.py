"""Execution of planned calls, and the reasons reported for calls that are not run."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.tools import tool

from scrubjay.agents.kwai import KwaiAgent, Limits, Profile
from scrubjay.agents.language.text import estimate_tokens
from scrubjay.memory import MemoryBank

from .questions import ask
from .replayable import assert_replayable
from .scripted_model import ScriptedModel, call


def test_a_repeated_call_runs_once_and_ends_the_work():
    runs = []

    @tool
    def count(text: str) -> str:
        """Count."""
        runs.append(text)
        return "one"

    same = [call("count", id=str(number), text="x") for number in range(3)]
    model = ScriptedModel(replies=[*same, "one"])
    result = KwaiAgent(model, [count], max_steps=9).invoke("Count")
    assert runs == ["x"]
    assert result["stopped"] == "no_progress"
    assert "step 1" in result["steps"][1].result


def test_identical_calls_may_be_allowed():
    result, _ = ask(
        lambda messages: "ok" if "Write the answer" in messages[0].text else call("echo", text="x"),
        max_steps=3,
        limits=Limits(identical_calls=3),
    )
    assert [step.status for step in result["steps"]] == ["success"] * 3


def test_a_tool_s_own_timeout_is_told_apart():
    @tool
    def socket_like() -> str:
        """Time out by itself."""
        raise TimeoutError("the server was silent")

    model = ScriptedModel(replies=[call("socket_like"), "gave up", "Unknown."])
    result = KwaiAgent(model, [socket_like]).invoke("Wait")
    assert "the server was silent" in result["steps"][0].result


def test_a_long_result_is_cut_with_a_note():
    @tool
    def long() -> str:
        """Return a long text."""
        return "word " * 10_000

    model = ScriptedModel(replies=[call("long"), "done", "Much."])
    result = KwaiAgent(model, [long], limits=Limits(result_tokens=100)).invoke("How much?")
    head, note = result["steps"][0].result.rsplit("\n", 1)
    assert estimate_tokens(head) <= 100
    assert note == f"[... {len(('word ' * 10_000).strip()) - len(head)} characters cut]"
    assert result["steps"][0].cut_characters == len(("word " * 10_000).strip()) - len(head)
    assert note in model.prompts[1][-1].text
    assert note in result["events"][3].text


def test_a_long_error_is_cut_with_a_note():
    @tool
    def fail() -> str:
        """Fail with a long text."""
        raise ValueError("word " * 10_000)

    model = ScriptedModel(replies=[call("fail"), "done", "Much."])
    (step,) = KwaiAgent(model, [fail], limits=Limits(result_tokens=100)).invoke("How much?")["steps"]
    assert step.status == "error"
    assert step.result.endswith(f"[... {step.cut_characters} characters cut]")


IMAGE = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}


@pytest.mark.parametrize(
    ("content", "text", "blocks"),
    [
        ([{"type": "text", "text": "A jay."}, IMAGE, IMAGE], "A jay.\n", ("image", "image")),
        ([IMAGE], "", ("image",)),
        (["A jay.", {"type": "image_url", "image_url": {"url": "x"}}], "A jay.\n", ("image_url",)),
        ([{"type": "text", "text": "A jay."}], "A jay.", ()),
    ],
)
def test_what_is_no_text_in_a_result_is_named(content, text, blocks):
    @tool
    def draw() -> list[Any]:
        """Draw something."""
        return content

    with MemoryBank(":memory:") as bank:
        model = ScriptedModel(replies=[call("draw"), "done", "Much."])
        (step,) = KwaiAgent(model, [draw], memory=bank).invoke("How much?")["steps"]
        tasks = [record.text for record in bank.recent(9, kind="task")]
    note = f"[left out, because only text is read: {', '.join(blocks)}]" if blocks else ""
    assert (step.result, step.dropped_blocks, step.cut_characters) == (text + note, blocks, 0)
    assert any(note in message.text for message in model.prompts[1])
    # A result without text answers nothing, and nothing is remembered.
    assert step.sufficient is bool(text.strip())
    assert len(tasks) == bool(text.strip())


def test_the_first_line_of_a_result_keeps_its_indentation():
    @tool
    def read() -> str:
        """Read code."""
        return "\n \n    a = 1\n    b = 2\n\n"

    model = ScriptedModel(replies=[call("read"), "done", "Much."])
    (step,) = KwaiAgent(model, [read]).invoke("How much?")["steps"]
    assert step.result == "    a = 1\n    b = 2"


@pytest.mark.parametrize(
    ("language", "message"), [("en", "the time for this question is over"), ("zh", "时间已到")]
)
def test_a_tool_for_which_no_time_is_left_is_not_begun(monkeypatch, language, message):
    # The planning takes all the time of the limit.
    moments = iter([0.0])
    monkeypatch.setattr("scrubjay.agents.kwai.limits.time.monotonic", lambda: next(moments, 61.0))
    runs = []

    @tool
    def note(text: str) -> str:
        """Store a note."""
        runs.append(text)
        return "noted"

    model = ScriptedModel(replies=[call("note", text="x"), "Unknown."])
    agent = KwaiAgent(model, [note], Profile(language=language), limits=Limits(seconds=60))
    result = agent.invoke("Go")
    assert runs == []
    assert message in result["steps"][0].result
    assert result["stopped"] == "seconds"
    assert_replayable(result["messages"])

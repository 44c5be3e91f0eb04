"""Execution of planned calls, and the reasons reported for calls that are not run."""

from __future__ import annotations

import pytest
from langchain_core.tools import tool

from scrubjay.agents.kwai import KwaiAgent, Limits, Profile
from scrubjay.agents.language.text import estimate_tokens

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

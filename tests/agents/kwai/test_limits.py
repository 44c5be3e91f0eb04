"""Every limit stops the work and nothing else: the answer is still written, and says why the work stopped."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading

import pytest
from langchain_core.tools import tool

from scrubjay.agents.kwai import KwaiAgent, Limits, Profile
from scrubjay.agents.language.text import estimate_tokens
from scrubjay.memory import MemoryBank

from .replayable import assert_replayable
from .scripted import ScriptedModel, call


@tool
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


def test_steps():
    result, model = ask(max_steps=3)
    assert (result["stopped"], len(result["steps"]), len(model.sent)) == ("steps", 3, 4)
    assert "steps" in result["answer"]


def test_tool_calls():
    result, _ = ask(max_steps=9, limits=Limits(tool_calls=2))
    assert (result["stopped"], len(result["steps"])) == ("tool_calls", 2)


def test_tokens():
    result, model = ask(max_steps=9, limits=Limits(tokens=1))
    assert (result["stopped"], len(result["steps"]), len(model.sent)) == ("tokens", 1, 2)


def test_seconds(monkeypatch):
    seconds = iter(range(0, 10_000, 7))
    monkeypatch.setattr("scrubjay.agents.kwai.limits.time.monotonic", lambda: next(seconds))
    result, _ = ask(max_steps=99, limits=Limits(seconds=60, tool_calls=99))
    assert result["stopped"] == "seconds"
    assert 0 < len(result["steps"]) < 9


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


def slow_tools():
    leave = threading.Event()

    @tool
    def waits() -> str:
        """Wait."""
        leave.wait(60)
        return "late"

    @tool
    async def waits_too() -> str:
        """Wait."""
        await asyncio.sleep(60)
        return "late"

    return leave, waits, waits_too


@pytest.mark.parametrize("kind", ["thread", "thread on the event loop", "coroutine"])
def test_a_tool_that_hangs_is_left_behind(kind):
    leave, waits, waits_too = slow_tools()
    slow = waits_too if kind == "coroutine" else waits
    model = ScriptedModel(replies=[call(slow.name), "gave up", "Unknown."])
    agent = KwaiAgent(model, [slow], limits=Limits(tool_seconds=0.05))
    result = agent.invoke("Wait") if kind == "thread" else asyncio.run(agent.ainvoke("Wait"))
    leave.set()
    assert result["steps"][0].status == "error"
    assert "0.05 seconds" in result["steps"][0].result
    assert result["answer"] == "Unknown."
    assert_replayable(result["messages"])


def test_a_tool_s_own_timeout_is_told_apart():
    @tool
    def socket_like() -> str:
        """Time out by itself."""
        raise TimeoutError("the server was silent")

    model = ScriptedModel(replies=[call("socket_like"), "gave up", "Unknown."])
    result = KwaiAgent(model, [socket_like]).invoke("Wait")
    assert "the server was silent" in result["steps"][0].result


def test_a_caller_that_cancels_is_obeyed():
    leave, waits, waits_too = slow_tools()

    async def run(slow):
        model = ScriptedModel(replies=[call(slow.name)])
        await asyncio.wait_for(KwaiAgent(model, [slow]).ainvoke("Wait"), timeout=0.2)

    for slow in (waits, waits_too):
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(run(slow))
    leave.set()


def test_a_long_result_is_cut_with_a_note():
    @tool
    def long() -> str:
        """Return much."""
        return "word " * 10_000

    model = ScriptedModel(replies=[call("long"), "done", "Much."])
    result = KwaiAgent(model, [long], limits=Limits(result_tokens=100)).invoke("How much?")
    head, note = result["steps"][0].result.rsplit("\n", 1)
    assert estimate_tokens(head) <= 100
    assert note == f"[... {len(('word ' * 10_000).strip()) - len(head)} characters cut]"


@pytest.mark.parametrize("binds", [True, False])
def test_a_prompt_never_exceeds_its_budget(binds):
    budget = 1_500

    def rule(messages):
        shown = sum(estimate_tokens(message.text) for message in messages)
        assert shown <= budget, messages
        if "Write the answer" in messages[0].text:
            return "Done."
        number = len(model.sent)
        if binds:
            return call("echo", id=str(number), text=f"{number} " + "word " * 250)
        return f'{{"task_name": "n", "command": {{"name": "echo", "args": {{"text": "{number} {"word " * 250}"}}}}}}'

    model = ScriptedModel(rule=rule, binds=binds)
    history = [("user" if turn % 2 == 0 else "ai", f"turn {turn} " + "talk " * 40) for turn in range(30)]
    limits = Limits(context_tokens=budget)
    agent = KwaiAgent(model, [echo], limits=limits, max_steps=8)
    result = agent.invoke([*history, ("user", "Go on")])
    assert len(result["steps"]) == 8
    assert "left out" in str(model.sent[-1])


def test_a_question_that_cannot_fit_is_refused_by_name():
    with pytest.raises(ValueError, match=r"context_tokens=300.*raise Limits\.context_tokens"):
        KwaiAgent(ScriptedModel(), [echo], limits=Limits(context_tokens=300)).invoke("why " * 1000)


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="tool_seconds=0"):
        Limits(tool_seconds=0)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_while_a_tool_runs_ends_the_run_and_leaves_a_history():
    leave, waits, _ = slow_tools()
    messages = []
    main = threading.get_ident()

    def press_control_c():
        signal.pthread_kill(main, signal.SIGINT)

    def watch():
        model = ScriptedModel(replies=[call("echo", text="one"), call("waits")])
        for part in KwaiAgent(model, [echo, waits]).stream("Wait"):
            messages.extend(part.get("messages", []))
            if part.get("events") and part["events"][0].text == "waits({})":
                threading.Timer(0.1, press_control_c).start()

    # Who started this process may have had it ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            watch()
    finally:
        leave.set()
        signal.signal(signal.SIGINT, before)
    assert_replayable(messages)
    assert [message.type for message in messages] == ["human", "ai", "tool"]


@pytest.mark.parametrize(
    ("language", "said"), [("en", "the time for this question is over"), ("zh", "时间已到")]
)
def test_a_tool_for_which_no_time_is_left_is_not_begun(monkeypatch, language, said):
    # The plan takes all the time there is.
    moments = iter([0.0])
    monkeypatch.setattr("scrubjay.agents.kwai.limits.time.monotonic", lambda: next(moments, 61.0))
    runs = []

    @tool
    def note(text: str) -> str:
        """Note."""
        runs.append(text)
        return "noted"

    model = ScriptedModel(replies=[call("note", text="x"), "Unknown."])
    agent = KwaiAgent(model, [note], Profile(language=language), limits=Limits(seconds=60))
    result = agent.invoke("Go")
    assert runs == []
    assert said in result["steps"][0].result
    assert result["stopped"] == "seconds"
    assert_replayable(result["messages"])


@pytest.mark.parametrize(
    ("language", "said"), [("en", "2 earlier turns and 1 memories"), ("zh", "2 轮更早的对话、1 条记忆")]
)
def test_what_is_left_out_is_told_in_the_language_of_the_prompts(language, said):
    with MemoryBank(":memory:") as bank:
        bank.add("lamp " * 400, kind="knowledge")
        model = ScriptedModel(rule=lambda messages: "Hm.")
        limits = Limits(context_tokens=300, dialogue_tokens=1)
        agent = KwaiAgent(model, profile=Profile(language=language), memory=bank, limits=limits)
        agent.invoke([("user", "Hello there"), ("ai", "Good day"), ("user", "Where is the lamp?")])
    assert said in model.sent[0][-1].text

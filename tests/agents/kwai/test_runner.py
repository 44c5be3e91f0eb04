"""The loop with threads and on an event loop, with and without streaming."""

from __future__ import annotations

import asyncio
import operator
import signal
import sys
import threading
from functools import reduce

import pytest

from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent, Limits

from .questions import JSON, NATIVE, QUESTION, echo, make
from .replayable import assert_replayable
from .scripted_model import ScriptedModel, call


@tool(side_effect=False)
async def abroad(name: str) -> str:
    """Return a person's place of residence."""
    await asyncio.sleep(0)
    return f"{name} lived in London"


def sum_parts(parts):
    return reduce(operator.add, parts)


def comparable(result):
    """Return a result without the parts that differ by run: ids and times."""
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


def test_the_answer_of_a_model_that_does_not_stream_comes_whole():
    def agent():
        return KwaiAgent(ScriptedModel(replies=["<think>Hm.</think> 97 years."], disable_streaming=True))

    async def on_a_loop():
        return [part async for part in agent().astream(QUESTION)]

    whole = comparable(agent().invoke(QUESTION))
    for parts in (list(agent().stream(QUESTION)), asyncio.run(on_a_loop())):
        assert [part["answer"] for part in parts if part.get("answer")] == ["97 years."]
        assert comparable(sum_parts(parts)) == whole


@pytest.mark.parametrize("replies", [NATIVE, JSON], ids=["native", "json"])
def test_parts_of_a_stream_add_up_to_the_result(replies):
    whole = comparable(make(replies)[0].invoke(QUESTION))
    parts = list(make(replies)[0].stream(QUESTION))
    assert comparable(sum_parts(parts)) == whole
    assert [part["answer"] for part in parts if part.get("answer")] == ["97 ", "years ", "apart."]
    messages = []
    for part in parts:
        messages += part.get("messages", [])
        assert_replayable(messages)


@pytest.mark.parametrize("replies", [NATIVE, JSON], ids=["native", "json"])
def test_the_event_loop_gives_the_same(replies):
    async def both():
        parts = [part async for part in make(replies)[0].astream(QUESTION)]
        return await make(replies)[0].ainvoke(QUESTION), sum_parts(parts)

    whole = comparable(make(replies)[0].invoke(QUESTION))
    assert [comparable(result) for result in asyncio.run(both())] == [whole, whole]


def test_a_coroutine_serves_as_a_tool_on_the_event_loop():
    agent, _ = make([call("abroad", name="Ada"), "enough", "London."], [abroad])
    result = asyncio.run(agent.ainvoke("Where did Ada live?"))
    assert result["steps"][0].result == "Ada lived in London"


def test_a_tool_that_is_a_coroutine_alone_runs_without_an_event_loop_too():
    """Tools of MCP servers are of this type."""
    agent, _ = make([call("abroad", name="Ada"), "enough", "London."], [abroad])
    assert agent.invoke("Where did Ada live?")["steps"][0].result == "Ada lived in London"

    async def inside():
        return make([call("abroad", name="Ada"), "enough", "London."], [abroad])[0].invoke("Where?")

    assert asyncio.run(inside())["steps"][0].status == "success"


def slow_tools():
    leave = threading.Event()

    @tool(side_effect=False)
    def waits() -> str:
        """Wait."""
        leave.wait(60)
        return "late"

    @tool(side_effect=False)
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


def test_a_caller_that_cancels_is_obeyed():
    leave, waits, waits_too = slow_tools()

    async def run(slow):
        model = ScriptedModel(replies=[call(slow.name)])
        await asyncio.wait_for(KwaiAgent(model, [slow]).ainvoke("Wait"), timeout=0.2)

    for slow in (waits, waits_too):
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(run(slow))
    leave.set()


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

    # The parent process may have set this signal to be ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            watch()
    finally:
        leave.set()
        signal.signal(signal.SIGINT, before)
    assert_replayable(messages)
    assert [message.type for message in messages] == ["human", "ai", "tool"]

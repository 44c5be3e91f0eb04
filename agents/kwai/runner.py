"""Run the agent loop and perform its effects, either in threads or on an asyncio event loop.

The agent loop is a generator that yields updates (dictionaries for the caller) and effects (actions with
I/O). One loop therefore serves sync and async callers. The runner performs each effect and sends the result
to the generator. If the effect fails, the runner throws the error into the generator.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, message_chunk_to_message
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, Tool

from scrubjay.agents.kwai.messages import extract_text, keep_pending, strip_thoughts
from scrubjay.agents.kwai.plans import Call
from scrubjay.agents.language.text import clean
from scrubjay.agents.language.untrusted import taint_scope


class ToolTimeoutError(Exception):
    """A tool did not return in time; the tool may still be running."""


@dataclass(frozen=True)
class AskModel:
    """Effect that calls the model. The loop receives the reply, an AIMessage."""

    model: Runnable[Any, Any]
    messages: list[BaseMessage]
    is_answer: bool = False
    """True if the reply's text is the answer, which is streamed to the caller."""


@dataclass(frozen=True)
class RunTool:
    """Effect that runs a tool. The loop receives the return value, or ToolTimeoutError after `seconds`."""

    tool: BaseTool
    call: Call
    seconds: float
    is_tainted: bool
    """True if untrusted text was read before the call."""


@dataclass(frozen=True)
class RunFunction:
    """Effect that calls a function, which may block. The loop receives the return value."""

    function: Callable[[], Any]


Effect = AskModel | RunTool | RunFunction
Update = dict[str, Any]
Loop = Generator[Update | Effect, Any, None]


class _LoopDriver:
    """Iterator over the effects and updates that the agent loop yields.

    `reply` is the result of the last effect. The driver sends this result to the loop. If an effect fails,
    the driver throws the effect's error into the loop.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.reply: Any = None
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[Update | Effect]:
        while True:
            reply, error, self.reply, self._error = self.reply, self._error, None, None
            try:
                effect = self._loop.throw(error) if error is not None else self._loop.send(reply)
            except StopIteration:
                return
            yield effect

    @contextlib.contextmanager
    def catch_errors(self) -> Iterator[None]:
        """Catch an error of the `with` block; the driver's next step throws this error into the loop."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self._error = error


class _AnswerStream:
    """Streamed answer that is assembled from chunks."""

    def __init__(self) -> None:
        self._chunks: list[AIMessage] = []
        self._text, self._has_text = "", False

    def add(self, chunk: AIMessage) -> Iterator[Update]:
        """Add a chunk (or the whole message) and yield an update with its text, without `<think>` blocks."""
        self._chunks.append(chunk)
        text = clean(chunk.text)
        if not self._has_text:
            self._text += text
            text = strip_thoughts(self._text)
            self._has_text = bool(text)
            self._text = "" if self._has_text else keep_pending(self._text)
        if text:
            yield {"answer": text}

    @property
    def message(self) -> AIMessage:
        """Complete message, joined from all chunks; an empty message if there are no chunks."""
        if not self._chunks:
            return AIMessage("")
        message, *others = self._chunks
        if isinstance(message, AIMessageChunk):
            # Add all chunks at once: one by one takes quadratic time.
            message = message_chunk_to_message(message + others)
        assert isinstance(message, AIMessage)
        return message


def run_loop(loop: Loop, config: RunnableConfig, streaming: bool) -> Iterator[Update]:
    """Run the agent loop `loop` and yield its updates; with `streaming`, the answer comes in chunks."""
    with contextlib.closing(loop):
        driver = _LoopDriver(loop)
        for effect in driver:
            if isinstance(effect, dict):
                yield effect
                continue
            with driver.catch_errors():
                if isinstance(effect, AskModel) and effect.is_answer and streaming:
                    answer = _AnswerStream()
                    for chunk in effect.model.stream(effect.messages, config):
                        yield from answer.add(chunk)
                    driver.reply = answer.message
                elif isinstance(effect, AskModel):
                    driver.reply = effect.model.invoke(effect.messages, config)
                    if effect.is_answer:
                        yield from _yield_answer(driver.reply)
                elif isinstance(effect, RunTool):
                    driver.reply = _run_tool(effect, config)
                else:
                    driver.reply = effect.function()


async def arun_loop(loop: Loop, config: RunnableConfig, streaming: bool) -> AsyncIterator[Update]:
    """Run the agent loop `loop` like `run_loop`, but on the asyncio event loop."""
    with contextlib.closing(loop):
        driver = _LoopDriver(loop)
        for effect in driver:
            if isinstance(effect, dict):
                yield effect
                continue
            with driver.catch_errors():
                if isinstance(effect, AskModel) and effect.is_answer and streaming:
                    answer = _AnswerStream()
                    async for chunk in effect.model.astream(effect.messages, config):
                        for update in answer.add(chunk):
                            yield update
                    driver.reply = answer.message
                elif isinstance(effect, AskModel):
                    driver.reply = await effect.model.ainvoke(effect.messages, config)
                    if effect.is_answer:
                        for update in _yield_answer(driver.reply):
                            yield update
                elif isinstance(effect, RunTool):
                    driver.reply = await _arun_tool(effect, config)
                else:
                    driver.reply = await asyncio.to_thread(effect.function)


def _yield_answer(message: AIMessage) -> Iterator[Update]:
    if text := extract_text(message):
        yield {"answer": text}


def _run_tool(run: RunTool, config: RunnableConfig) -> Any:
    running = _in_thread(lambda: _invoke(run, config))
    if not wait([running], timeout=run.seconds).done:
        raise ToolTimeoutError
    return running.result()


async def _arun_tool(run: RunTool, config: RunnableConfig) -> Any:
    running: asyncio.Future[Any]
    if _is_async(run.tool):
        running = asyncio.ensure_future(_ainvoke(run, config))
    else:
        # Do not use the event loop's thread pool: asyncio.run would wait for a thread that never ends.
        running = asyncio.wrap_future(_in_thread(lambda: _invoke(run, config)))
    try:
        done, _ = await asyncio.wait([running], timeout=run.seconds)
    except BaseException:
        running.cancel()
        raise
    if not done:
        running.cancel()
        raise ToolTimeoutError
    return running.result()


def _in_thread(function: Callable[[], Any]) -> Future[Any]:
    """Run `function` in a thread that does not keep the process alive."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(function))
        except BaseException as error:  # noqa: BLE001
            # A tool that calls sys.exit() fails without ending the agent. A future cannot hold StopIteration.
            holds = isinstance(error, Exception) and not isinstance(error, StopIteration)
            future.set_exception(error if holds else RuntimeError(repr(error)))

    threading.Thread(target=run, name="tool", daemon=True).start()
    return future


def _invoke(run: RunTool, config: RunnableConfig) -> Any:
    if isinstance(run.tool, StructuredTool | Tool) and run.tool.func is None:
        # An async-only tool, such as one of an MCP server; this thread has no event loop.
        return asyncio.run(_ainvoke(run, config))
    with taint_scope(run.is_tainted):
        return run.tool.invoke(_as_tool_call(run), config)


async def _ainvoke(run: RunTool, config: RunnableConfig) -> Any:
    with taint_scope(run.is_tainted):
        return await run.tool.ainvoke(_as_tool_call(run), config)


def _as_tool_call(run: RunTool) -> dict[str, Any]:
    return {"name": run.tool.name, "args": run.call.arguments, "id": run.call.id, "type": "tool_call"}


def _is_async(tool: BaseTool) -> bool:
    if isinstance(tool, StructuredTool | Tool):
        return tool.coroutine is not None
    return type(tool)._arun is not BaseTool._arun

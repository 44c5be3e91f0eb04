"""Carry out what the loop asks for, with threads and deadlines, or on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future, wait
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, Tool

from scrubjay.agents.kwai.effects import AskModel, Effect, RunTool, ToolTimeoutError
from scrubjay.agents.kwai.replies import said, unfinished, without_thoughts
from scrubjay.agents.language.text import clean
from scrubjay.agents.language.untrusted import telling_tools

Update = dict[str, Any]
Loop = Generator[Update | Effect, Any, None]


class _Running:
    """A loop while it runs: effects and updates, each answered with `reply` or the error that came of it."""

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
    def answering(self) -> Iterator[None]:
        """Leave to the loop what to do about an error."""
        try:
            yield
        except Exception as caught:  # noqa: BLE001
            self._error = caught


class _Written:
    """An answer as it is written."""

    def __init__(self) -> None:
        self._chunks: list[AIMessage] = []
        self._text, self._begun = "", False

    def add(self, chunk: AIMessage) -> Iterator[Update]:
        """Add a piece, or all of it at once, and give its text but for thoughts between `<think>` marks."""
        self._chunks.append(chunk)
        text = clean(chunk.text)
        if not self._begun:
            self._text += text
            text = without_thoughts(self._text)
            self._begun = bool(text)
            self._text = "" if self._begun else unfinished(self._text)
        if text:
            yield {"answer": text}

    @property
    def message(self) -> AIMessage:
        """All of it."""
        if not self._chunks:
            return AIMessage("")
        message, *others = self._chunks
        if isinstance(message, AIMessageChunk):
            message = message_chunk_to_message(message + others)  # at once: one by one takes their square
        assert isinstance(message, AIMessage)
        return message


def drive(loop: Loop, config: RunnableConfig, streaming: bool) -> Iterator[Update]:
    """Run `loop` to its end and yield its updates; with `streaming`, the answer comes as it is written."""
    with contextlib.closing(loop):
        running = _Running(loop)
        for effect in running:
            if isinstance(effect, dict):
                yield effect
                continue
            with running.answering():
                if isinstance(effect, AskModel) and effect.answers and streaming:
                    written = _Written()
                    for chunk in effect.model.stream(effect.messages, config):
                        yield from written.add(chunk)
                    running.reply = written.message
                elif isinstance(effect, AskModel):
                    running.reply = effect.model.invoke(effect.messages, config)
                    if effect.answers:
                        yield from _shown(running.reply)
                elif isinstance(effect, RunTool):
                    running.reply = _run_tool(effect, config)
                else:
                    running.reply = effect.function()


async def adrive(loop: Loop, config: RunnableConfig, streaming: bool) -> AsyncIterator[Update]:
    """Run `loop` as `drive` does, on the event loop."""
    with contextlib.closing(loop):
        running = _Running(loop)
        for effect in running:
            if isinstance(effect, dict):
                yield effect
                continue
            with running.answering():
                if isinstance(effect, AskModel) and effect.answers and streaming:
                    written = _Written()
                    async for chunk in effect.model.astream(effect.messages, config):
                        for update in written.add(chunk):
                            yield update
                    running.reply = written.message
                elif isinstance(effect, AskModel):
                    running.reply = await effect.model.ainvoke(effect.messages, config)
                    if effect.answers:
                        for update in _shown(running.reply):
                            yield update
                elif isinstance(effect, RunTool):
                    running.reply = await _arun_tool(effect, config)
                else:
                    running.reply = await asyncio.to_thread(effect.function)


def _shown(message: AIMessage) -> Iterator[Update]:
    if text := said(message):
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
        # Not in the event loop's own threads: asyncio.run would wait for one that never ends.
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
            # A tool that calls sys.exit() has failed; it does not end the agent. A future holds no
            # StopIteration.
            holds = isinstance(error, Exception) and not isinstance(error, StopIteration)
            future.set_exception(error if holds else RuntimeError(repr(error)))

    threading.Thread(target=run, name="tool", daemon=True).start()
    return future


def _invoke(run: RunTool, config: RunnableConfig) -> Any:
    if isinstance(run.tool, StructuredTool | Tool) and run.tool.func is None:
        # As tools of MCP servers are; this thread has no event loop.
        return asyncio.run(_ainvoke(run, config))
    with telling_tools(run.tainted):
        return run.tool.invoke(_as_tool_call(run), config)


async def _ainvoke(run: RunTool, config: RunnableConfig) -> Any:
    with telling_tools(run.tainted):
        return await run.tool.ainvoke(_as_tool_call(run), config)


def _as_tool_call(run: RunTool) -> dict[str, Any]:
    return {"name": run.tool.name, "args": run.call.arguments, "id": run.call.id, "type": "tool_call"}


def _is_async(tool: BaseTool) -> bool:
    if isinstance(tool, StructuredTool | Tool):
        return tool.coroutine is not None
    return type(tool)._arun is not BaseTool._arun

"""Carry out what the loop asks for, with threads and deadlines, or on an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future, wait
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, Tool

from scrubjay.agents.kwai.effects import AskModel, Do, Effect, RunTool, ToolTimeoutError
from scrubjay.agents.kwai.text import clean
from scrubjay.agents.kwai.untrusted import telling_tools

Update = dict[str, Any]
Loop = Generator[Update | Effect, Any, None]


def drive(loop: Loop, config: RunnableConfig, streaming: bool) -> Iterator[Update]:
    """Run `loop` to its end and yield its updates; with `streaming`, the answer comes as it is written."""
    reply: Any = None
    error: BaseException | None = None
    try:
        while True:
            try:
                effect = loop.throw(error) if error is not None else loop.send(reply)
            except StopIteration:
                return
            reply = error = None
            if isinstance(effect, dict):
                yield effect
                continue
            try:
                if isinstance(effect, AskModel):
                    reply = yield from _ask(effect, config, streaming)
                elif isinstance(effect, RunTool):
                    reply = _run_tool(effect, config)
                else:
                    reply = effect.function()
            except Exception as caught:  # noqa: BLE001  the loop decides
                error = caught
    finally:
        loop.close()


async def adrive(loop: Loop, config: RunnableConfig, streaming: bool) -> AsyncIterator[Update]:
    """Run `loop` as `drive` does, on the event loop."""
    reply: Any = None
    error: BaseException | None = None
    try:
        while True:
            try:
                effect = loop.throw(error) if error is not None else loop.send(reply)
            except StopIteration:
                return
            reply = error = None
            if isinstance(effect, dict):
                yield effect
                continue
            try:
                if isinstance(effect, AskModel) and effect.answers and streaming:
                    whole: AIMessageChunk | None = None
                    async for chunk in effect.model.astream(effect.messages, config):
                        whole = chunk if whole is None else whole + chunk
                        if chunk.text:
                            yield {"answer": clean(chunk.text)}
                    reply = _as_message(whole)
                elif isinstance(effect, AskModel):
                    reply = await effect.model.ainvoke(effect.messages, config)
                    if effect.answers and reply.text:
                        yield {"answer": clean(reply.text)}
                else:
                    reply = await _acarry_out(effect, config)
            except Exception as caught:  # noqa: BLE001  the loop decides
                error = caught
    finally:
        loop.close()


def _ask(effect: AskModel, config: RunnableConfig, streaming: bool) -> Generator[Update, None, AIMessage]:
    if not (effect.answers and streaming):
        message = effect.model.invoke(effect.messages, config)
        if effect.answers and message.text:
            yield {"answer": clean(message.text)}
        return message
    whole: AIMessageChunk | None = None
    for chunk in effect.model.stream(effect.messages, config):
        whole = chunk if whole is None else whole + chunk
        if chunk.text:
            yield {"answer": clean(chunk.text)}
    return _as_message(whole)


def _run_tool(run: RunTool, config: RunnableConfig) -> Any:
    running = _in_thread(lambda: _invoke(run, config))
    if not wait([running], timeout=run.seconds).done:
        raise ToolTimeoutError
    return running.result()


async def _acarry_out(effect: RunTool | Do, config: RunnableConfig) -> Any:
    if isinstance(effect, Do):
        return await asyncio.to_thread(effect.function)
    running: asyncio.Future[Any]
    if _is_async(effect.tool):
        running = asyncio.ensure_future(_ainvoke(effect, config))
    else:
        # Not in the event loop's own threads: asyncio.run would wait for one that never ends.
        running = asyncio.wrap_future(_in_thread(lambda: _invoke(effect, config)))
    try:
        done, _ = await asyncio.wait([running], timeout=effect.seconds)
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
            # A tool that calls sys.exit() has failed; it does not end the agent. A future holds no StopIteration.
            holds = isinstance(error, Exception) and not isinstance(error, StopIteration)
            future.set_exception(error if holds else RuntimeError(repr(error)))

    threading.Thread(target=run, name="tool", daemon=True).start()
    return future


def _invoke(run: RunTool, config: RunnableConfig) -> Any:
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


def _as_message(whole: AIMessageChunk | None) -> AIMessage:
    if whole is None:
        return AIMessage("")
    message = message_chunk_to_message(whole)
    assert isinstance(message, AIMessage)
    return message

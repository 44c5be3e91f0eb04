"""Run the agent loop and perform its effects, either in threads or on an asyncio event loop.

The agent loop is a generator that yields updates (dictionaries for the caller) and effects (actions with
I/O). One loop therefore serves sync and async callers. The runner performs each effect, by `run` or by
`arun`, and sends the result to the generator. If the effect fails, the runner throws the error into the
generator.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolCall
from langchain_core.messages.tool import tool_call
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, Tool

from scrubjay.agents.kwai.turn import Call
from scrubjay.agents.language.text import taint_scope
from scrubjay.agents.tools.web import run_in_thread


def run_loop(loop: Loop, config: RunnableConfig) -> Iterator[Update]:
    """Run the agent loop `loop` and yield its updates."""
    with contextlib.closing(loop):
        resume = partial(loop.send, None)
        while (effect := _advance(resume)) is not None:
            resume = partial(loop.send, None)
            if isinstance(effect, dict):
                yield effect
                continue
            try:
                resume = partial(loop.send, effect.run(config))
            except Exception as error:  # noqa: BLE001  thrown into the loop
                resume = partial(loop.throw, error)


async def arun_loop(loop: Loop, config: RunnableConfig) -> AsyncIterator[Update]:
    """Run the agent loop `loop` like `run_loop`, but on the asyncio event loop."""
    with contextlib.closing(loop):
        resume = partial(loop.send, None)
        while (effect := _advance(resume)) is not None:
            resume = partial(loop.send, None)
            if isinstance(effect, dict):
                yield effect
                continue
            try:
                resume = partial(loop.send, await effect.arun(config))
            except Exception as error:  # noqa: BLE001  thrown into the loop
                resume = partial(loop.throw, error)


def _advance(resume: Callable[[], Update | Effect]) -> Update | Effect | None:
    """Resume the agent loop; return its next update or effect, or None at its end."""
    try:
        return resume()
    except StopIteration:
        return None


@dataclass(frozen=True)
class AskModel:
    """Effect that calls the model. The loop receives the reply, an AIMessage."""

    model: Runnable[Any, Any]
    messages: list[BaseMessage]

    def run(self, config: RunnableConfig) -> AIMessage:
        """Call the model."""
        return self.model.invoke(self.messages, config)

    async def arun(self, config: RunnableConfig) -> AIMessage:
        """Call the model on the event loop."""
        return await self.model.ainvoke(self.messages, config)


@dataclass
class StreamModel:
    """Effect that reads the next chunk of a streamed reply. After the last chunk, the loop receives None."""

    model: Runnable[Any, Any]
    messages: list[BaseMessage]
    _chunks: Any = field(default=None, init=False)

    def run(self, config: RunnableConfig) -> AIMessage | None:
        """Read the next chunk; the first call starts the stream."""
        if self._chunks is None:
            self._chunks = self.model.stream(self.messages, config)
        return next(self._chunks, None)

    async def arun(self, config: RunnableConfig) -> AIMessage | None:
        """Read the next chunk on the event loop; the first call starts the stream."""
        if self._chunks is None:
            self._chunks = self.model.astream(self.messages, config)
        return await anext(self._chunks, None)


@dataclass(frozen=True)
class RunFunction:
    """Effect that calls a function, which may block. The loop receives the return value."""

    function: Callable[[], Any]

    def run(self, config: RunnableConfig) -> Any:
        """Call the function."""
        return self.function()

    async def arun(self, config: RunnableConfig) -> Any:
        """Call the function in a thread."""
        return await asyncio.to_thread(self.function)


class ToolTimeoutError(Exception):
    """A tool did not return in time; the tool may still be running."""


@dataclass(frozen=True)
class RunTool:
    """Effect that runs a tool. The loop receives the return value, or ToolTimeoutError after `seconds`."""

    tool: BaseTool
    call: Call
    seconds: float
    is_tainted: bool
    """True if untrusted text was read before the call."""

    def run(self, config: RunnableConfig) -> Any:
        """Run the tool in a thread."""
        running = run_in_thread(lambda: self._invoke(config))
        if not wait([running], timeout=self.seconds).done:
            raise ToolTimeoutError
        return running.result()

    async def arun(self, config: RunnableConfig) -> Any:
        """Run an async tool on the event loop, and any other tool in a thread."""
        running: asyncio.Future[Any]
        if _is_async(self.tool):
            running = asyncio.ensure_future(self._ainvoke(config))
        else:
            # Do not use the event loop's thread pool: asyncio.run would wait for a thread that never ends.
            running = asyncio.wrap_future(run_in_thread(lambda: self._invoke(config)))
        try:
            done, _ = await asyncio.wait([running], timeout=self.seconds)
        except BaseException:
            running.cancel()
            raise
        if not done:
            running.cancel()
            raise ToolTimeoutError
        return running.result()

    def _invoke(self, config: RunnableConfig) -> Any:
        if isinstance(self.tool, StructuredTool | Tool) and self.tool.func is None:
            # An async-only tool, such as one of an MCP server; this thread has no event loop.
            return asyncio.run(self._ainvoke(config))
        with taint_scope(self.is_tainted):
            return self.tool.invoke(self._tool_call, config)

    async def _ainvoke(self, config: RunnableConfig) -> Any:
        with taint_scope(self.is_tainted):
            return await self.tool.ainvoke(self._tool_call, config)

    @property
    def _tool_call(self) -> ToolCall:
        return tool_call(name=self.tool.name, args=self.call.arguments, id=self.call.id)


Effect = AskModel | StreamModel | RunFunction | RunTool
Update = dict[str, Any]
Loop = Generator[Update | Effect, Any, None]


def _is_async(tool: BaseTool) -> bool:
    if isinstance(tool, StructuredTool | Tool):
        return tool.coroutine is not None
    return type(tool)._arun is not BaseTool._arun

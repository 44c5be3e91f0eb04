"""Effects: actions with I/O that the agent loop requests, so that one loop serves sync and async callers.

The agent loop is a generator that yields updates (dictionaries for the caller) and effects. The runner
performs each effect and sends the result to the generator. If the effect fails, the runner throws the error
into the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

from scrubjay.agents.kwai.plans import Call


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

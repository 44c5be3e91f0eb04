"""Effects that the agent loop requests; the loop does no I/O itself, so it serves sync and async callers.

A loop is a generator. It yields updates (dictionaries, for the caller) and effects. The runner performs an
effect and sends its result to the generator, or throws its error into it.
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
    """A tool did not return in time; it may still be running."""


@dataclass(frozen=True)
class AskModel:
    """Call the model; the result is an AIMessage."""

    model: Runnable[Any, Any]
    messages: list[BaseMessage]
    is_answer: bool = False
    """True if the reply's text is the answer, which is streamed to the caller."""


@dataclass(frozen=True)
class RunTool:
    """Run a tool; the result is its return value, and ToolTimeoutError is thrown after `seconds`."""

    tool: BaseTool
    call: Call
    seconds: float
    is_tainted: bool
    """True if untrusted text was read before the call."""


@dataclass(frozen=True)
class RunFunction:
    """Call a function that may block; the result is its return value."""

    function: Callable[[], Any]


Effect = AskModel | RunTool | RunFunction

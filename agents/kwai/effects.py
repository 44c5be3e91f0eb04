"""What the loop asks of the world; it waits for nothing itself, so it serves plain and async callers.

A loop is a generator: it yields updates (dictionaries, for whoever watches) and effects, and is sent an
effect's result, or thrown its error.
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
    answers: bool = False
    """Whether the reply's text is the answer, to be shown while it is written."""


@dataclass(frozen=True)
class RunTool:
    """Run a tool; the result is what it returned, and ToolTimeoutError is thrown after `seconds`."""

    tool: BaseTool
    call: Call
    seconds: float
    tainted: bool
    """Whether text from outside was read before."""


@dataclass(frozen=True)
class Do:
    """Call something that may block; the result is what it returns."""

    function: Callable[[], Any]


Effect = AskModel | RunTool | Do

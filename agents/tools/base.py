"""Result type and exceptions of the tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.tools import ToolException

from scrubjay.agents.language.prompts import LocalizedError, load_prompts

Language = Literal["en", "zh"]


class ToolUnavailable(ToolException):
    """A tool cannot answer calls at present; the planner should choose another tool.

    `tool` is the tool's name, `cause` the reason, `hint` an alternative; `offline` is True if there was no
    network.
    """

    def __init__(
        self, tool: str, cause: str, hint: str = "", offline: bool = True, language: Language = "en"
    ) -> None:
        self.tool, self.cause, self.hint, self.offline = tool, cause, hint, offline
        name = "tool_offline" if offline else "tool_unavailable"
        super().__init__(load_prompts(language).say(name, tool=tool, cause=cause, hint=hint).strip())


class ToolArgumentError(LocalizedError, ValueError):
    """The tool cannot work with the value of an argument."""


class UnreachableError(LocalizedError, OSError):
    """A server did not answer in time; `offline` is True if a missing network is the likely cause."""

    def __init__(self, name: str, /, offline: bool = True, **values: object) -> None:
        super().__init__(name, **values)
        self.offline = offline


@dataclass(frozen=True)
class ToolResult:
    """Result of a tool call: text for the planner, its sources, and the data as JSON."""

    text: str
    """Text for the planner."""
    urls: tuple[str, ...] = ()
    """Addresses of the sources."""
    data: Any = None
    """Result as JSON values, for programs."""
    recorded_on: str | None = None
    """Date on which a replayed answer was recorded, as YYYY-MM-DD; None for a live answer."""

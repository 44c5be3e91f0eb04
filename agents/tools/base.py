"""What every tool gives: an answer, or one of four failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.tools import ToolException

from scrubjay.agents.language.prompts import Told, load_prompts

Language = Literal["en", "zh"]


class ToolUnavailable(ToolException):
    """A tool cannot answer now, whatever it is asked; the planner should choose another.

    `tool` is its name, `cause` why, `hint` what to do instead; `offline` says that there was no network.
    """

    def __init__(
        self, tool: str, cause: str, hint: str = "", offline: bool = True, language: Language = "en"
    ) -> None:
        self.tool, self.cause, self.hint, self.offline = tool, cause, hint, offline
        name = "tool_offline" if offline else "tool_unavailable"
        super().__init__(load_prompts(language).say(name, tool=tool, cause=cause, hint=hint).strip())


class Mistaken(Told, ValueError):
    """An argument with which the tool cannot work."""


class Unreachable(Told, OSError):
    """A server did not answer in time; `offline` says that the network, not it, is the likely cause."""

    def __init__(self, name: str, /, offline: bool = True, **values: object) -> None:
        super().__init__(name, **values)
        self.offline = offline


@dataclass(frozen=True)
class Answer:
    """What a tool found: words for the planner, and what they rest on."""

    text: str
    """Shown to the planner."""
    urls: tuple[str, ...] = ()
    """Sources."""
    data: Any = None
    """The same as JSON values, for programs."""
    recorded: str | None = None
    """The day a cached answer was recorded, as YYYY-MM-DD; None for a live one."""

"""What happens while a question is answered: an event for whoever watches, a step for whoever keeps the log.

The names of actions are those of KwaiAgents' chain messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from scrubjay.agents.kwai.remembering import Remembered

Action = Literal[
    "thinking",
    "thought",
    "execute",
    "observation",
    "reading",
    "click",
    "fail",
    "finish",
    "conclusion",
    "chain_end",
]
_SHORT = 100
_NOTHING = ("", "null", "[]", "{}", '""')


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    index: int
    """Place among the question's events, from 0."""
    action: Action
    """What happened; `reading` opens an address, `click` follows one that an earlier result gave."""
    text: str
    """In full."""
    finish_time: datetime
    """When it was over."""
    tokens: int = 0
    """Tokens of all calls of the model until then."""
    tainted: bool = False
    """Whether text that somebody outside could have worded had been read by then."""
    recalled: tuple[Remembered, ...] = field(default=(), repr=False)
    """What memory had brought up for it, where it is a plan or an answer."""

    @property
    def short_text(self) -> str:
        """The first 100 characters."""
        return self.text if len(self.text) <= _SHORT else self.text[: _SHORT - 1] + "…"


@dataclass(frozen=True)
class Step:
    """One task: what was planned, what was run, what came of it."""

    index: int
    """Place among the question's steps, from 1."""
    task_name: str
    """What the step was to find out."""
    tool: str
    """Name as planned, whether or not there is such a tool."""
    arguments: dict[str, Any]
    """As planned."""
    call_id: str
    """The id that links plan and result in the messages."""
    result: str
    """What the tool said, or why it did not run; cut to the limit, without marks."""
    status: Literal["success", "error"]
    """Whether the tool ran and succeeded."""
    rungs: tuple[str, ...]
    """How the plan was read from the model's reply, each attempt in order."""
    trusted: bool = True
    """Whether nobody outside could have worded the result."""
    sources: tuple[str, ...] = ()
    """Addresses that the result came from."""
    artifact: Any = field(default=None, repr=False, compare=False)
    """What the tool returned beside its text."""
    blocked: bool = False
    """Whether it did not run because text from outside may have asked for it, and nobody approved."""

    @property
    def sufficient(self) -> bool:
        """Whether the step found anything; JSON of nothing, as of None or no rows, is not."""
        return self.status == "success" and self.result.strip() not in _NOTHING

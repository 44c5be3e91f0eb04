"""Records of an agent run: events for live display, steps for the log.

The names of actions are those of KwaiAgents' chain messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from scrubjay.agents.kwai.memory_protocol import MemoryRecord

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
    """Event of an agent run."""

    index: int
    """Index among the question's events, from 0."""
    action: Action
    """Type of the event; `reading` opens an address, `click` opens one from an earlier result."""
    text: str
    """Full text of the event."""
    finish_time: datetime
    """End time of the event."""
    tokens: int = 0
    """Total tokens of all model calls so far."""
    is_tainted: bool = False
    """True if untrusted text had been read by then."""
    recalled_records: tuple[MemoryRecord, ...] = field(default=(), repr=False)
    """Memory records in the prompt, if the event is a plan or an answer."""

    @property
    def short_text(self) -> str:
        """The first 100 characters."""
        return self.text if len(self.text) <= _SHORT else self.text[: _SHORT - 1] + "…"


@dataclass(frozen=True)
class Step:
    """One task of an agent run: plan, call and result."""

    index: int
    """Index among the question's steps, from 1."""
    task_name: str
    """Goal of the task."""
    tool: str
    """Tool name in the plan; there may be no such tool."""
    arguments: dict[str, Any]
    """Arguments in the plan."""
    call_id: str
    """Id that links call and result in the messages."""
    result: str
    """Result of the tool, or the reason why it did not run; truncated to the limit, without data marks."""
    status: Literal["success", "error"]
    """`success` if the tool ran and succeeded, else `error`."""
    parse_methods: tuple[str, ...]
    """Attempts to parse the plan from the model's reply, in order."""
    trusted: bool = True
    """True if no third party could influence the result."""
    sources: tuple[str, ...] = ()
    """Source addresses of the result."""
    artifact: Any = field(default=None, repr=False, compare=False)
    """Artifact of the tool's result."""
    is_blocked: bool = False
    """True if the call was not run because untrusted text was read and the call was not approved."""

    @property
    def sufficient(self) -> bool:
        """True if the step succeeded with a non-empty result; JSON such as `null` or `[]` counts as empty."""
        return self.status == "success" and self.result.strip() not in _NOTHING

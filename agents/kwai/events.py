"""Records of an agent run: events for live display, steps for the log.

The names of the actions are taken from KwaiAgents.
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
    """Type of the event.

    An event of type `reading` or `click` announces that the agent opens a web address. The type is `click`
    if the address is from an earlier result.
    """
    text: str
    """Full text of the event."""
    finish_time: datetime
    """End time of the event."""
    tokens: int = 0
    """Total tokens of all model calls so far."""
    is_tainted: bool = False
    """True if the agent had read untrusted text when the event occurred."""
    recalled_records: tuple[MemoryRecord, ...] = field(default=(), repr=False)
    """Memory records in the prompt, if the event is a plan or an answer."""

    @property
    def short_text(self) -> str:
        """First 100 characters of `text`."""
        return self.text if len(self.text) <= _SHORT else self.text[: _SHORT - 1] + "…"


@dataclass(frozen=True)
class Step:
    """One task of an agent run: plan, call and result."""

    index: int
    """Index among the question's steps, from 1."""
    task_name: str
    """Goal of the task."""
    tool: str
    """Tool name in the plan; the plan may name a tool that does not exist."""
    arguments: dict[str, Any]
    """Arguments in the plan."""
    call_id: str
    """Id that links call and result in the messages."""
    result: str
    """Result of the tool, or the reason why the tool did not run.

    The text is truncated to `Limits.result_tokens` tokens. It does not contain the marks that label it as
    data in a prompt."""
    status: Literal["success", "error"]
    """`success` if the tool ran and succeeded, else `error`."""
    parse_methods: tuple[str, ...]
    """Result of each attempt to parse a plan from the model's reply, in order.

    A failed attempt is `unreadable: REASON`. The last entry names the format of the plan, such as `json`."""
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

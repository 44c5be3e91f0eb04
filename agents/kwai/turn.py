"""State of one question while the agent works on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from scrubjay.agents.kwai.events import Action, Event, Step
from scrubjay.agents.kwai.limits import Meter
from scrubjay.agents.kwai.memory_protocol import MemoryRecord
from scrubjay.agents.language.address import AllowedAddresses, find_addresses, find_new_addresses
from scrubjay.agents.language.gate import collect_texts
from scrubjay.agents.language.text import clean


class Passage(NamedTuple):
    """Passage of the knowledge supplied with the question."""

    text: str
    trusted: bool
    """True if the user declared the document as trusted."""


@dataclass
class Turn:
    """State of one question, discarded after the answer. Records in the memory stay."""

    user_message: HumanMessage
    """User's message."""
    dialogue: list[BaseMessage]
    """Earlier messages of user and agent."""
    window: list[BaseMessage]
    """Last messages of `dialogue` that are included in prompts."""
    knowledge: tuple[Passage, ...]
    """Passages of the documents supplied with the question."""
    meter: Meter
    clock: Callable[[], datetime]
    is_tainted: bool = False
    """True if untrusted text was read."""
    steps: list[Step] = field(default_factory=list)
    transcript: list[list[BaseMessage]] = field(default_factory=list)
    """Messages of each step: the call, its result, and the results of postponed calls."""
    recalled_records: list[MemoryRecord] = field(default_factory=list)
    """Memory records for the next step."""
    written_ids: set[str] = field(default_factory=set)
    """Ids of the memory records that this question wrote."""
    reflection: str | None = None
    """Instruction to plan differently after a step without a useful result."""
    draft: AIMessage | None = None
    """Message in which the planner wrote text without a plan; None if there is no such message."""
    event_count: int = 0

    @property
    def question(self) -> str:
        """Text of the user's message."""
        return clean(self.user_message.text)

    def allowed_addresses(self) -> AllowedAddresses:
        """Return the web addresses that the user or a source wrote, not those that only the model wrote."""
        trusted_texts = [message.text for message in self.dialogue if isinstance(message, HumanMessage)]
        trusted_texts += [passage.text for passage in self.knowledge if passage.trusted]
        trusted_texts += [record.text for record in self.recalled_records if record.trust == "user"]
        untrusted_addresses = [
            find_addresses(passage.text) for passage in self.knowledge if not passage.trusted
        ]
        untrusted_addresses += [
            # Skip addresses that a tool repeats from its arguments.
            find_new_addresses(step.result, "".join(collect_texts(step.arguments)))
            for step in self.steps
            if not step.trusted
        ]
        return AllowedAddresses([self.question, *trusted_texts], untrusted_addresses)

    def make_event(self, action: Action, text: str) -> dict[str, Any]:
        """Create the next event; return an update that adds this event to the agent's output."""
        tokens, has_memory = self.meter.usage["total_tokens"], action in ("thinking", "conclusion")
        records = tuple(self.recalled_records) if has_memory else ()
        event = Event(self.event_count, action, text, self.clock(), tokens, self.is_tainted, records)
        self.event_count += 1
        return {"events": [event]}

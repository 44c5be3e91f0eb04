"""One question on its way to an answer: what is known, done and spent so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from scrubjay.agents.kwai.events import Action, Event, Step
from scrubjay.agents.kwai.limits import Meter
from scrubjay.agents.kwai.remembering import Remembered
from scrubjay.agents.language.address import Given, named, unheard
from scrubjay.agents.language.gate import texts
from scrubjay.agents.language.text import clean


class Supplied(NamedTuple):
    """A passage that came with the question."""

    text: str
    trusted: bool
    """Whether the user vouches for it."""


@dataclass
class Turn:
    """The state of one question; nothing of it outlives the answer but what memory was given."""

    asked: HumanMessage
    """The user's message."""
    dialogue: list[BaseMessage]
    """What user and agent said before."""
    window: list[BaseMessage]
    """The last of it: as much as prompts show."""
    knowledge: tuple[Supplied, ...]
    """Documents supplied with the question."""
    meter: Meter
    clock: Callable[[], datetime]
    tainted: bool = False
    """Whether text that somebody outside could have worded was read."""
    steps: list[Step] = field(default_factory=list)
    transcript: list[list[BaseMessage]] = field(default_factory=list)
    """Of each step its call, its result, and answers to calls that came with it."""
    recalled: list[Remembered] = field(default_factory=list)
    """What memory brought up for the next step."""
    written: set[str] = field(default_factory=set)
    """Records that this question itself made."""
    reflection: str | None = None
    """Why the next plan should differ from the last."""
    draft: AIMessage | None = None
    """What the planner said instead of planning on."""
    events: int = 0

    @property
    def question(self) -> str:
        """The user's words."""
        return clean(self.asked.text)

    def given(self) -> Given:
        """Return the addresses that another wrote: the user, or a source that did not hear them from us."""
        said = [message.text for message in self.dialogue if isinstance(message, HumanMessage)]
        said += [passage.text for passage in self.knowledge if passage.trusted]
        said += [record.text for record in self.recalled if record.trust == "user"]
        read = [named(passage.text) for passage in self.knowledge if not passage.trusted]
        read += [
            # A tool may repeat what it was called with.
            unheard(step.result, "".join(texts(step.arguments)))
            for step in self.steps
            if not step.trusted
        ]
        return Given([self.question, *said], read)

    def event(self, action: Action, text: str) -> dict[str, Any]:
        """Return an update that says what happened."""
        spent, planned = self.meter.usage["total_tokens"], action in ("thinking", "conclusion")
        recalled = tuple(self.recalled) if planned else ()
        event = Event(self.events, action, text, self.clock(), spent, self.tainted, recalled)
        self.events += 1
        return {"events": [event]}

"""State of one question, and the records of its run: events, calls, steps and memory records."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from scrubjay.agents.kwai.limits import Meter
from scrubjay.agents.language.address import AllowedAddresses, find_addresses, find_new_addresses
from scrubjay.agents.language.gate import collect_texts
from scrubjay.agents.language.memories import find_mark_numbers
from scrubjay.agents.language.provenance import is_marked
from scrubjay.agents.language.text import clean

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
FINISH = "task_complete"
NOTHING = "do_nothing"
_SHORT = 100
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_EMPTY = ("", "null", "[]", "{}", '""')


class Passage(NamedTuple):
    """Passage of the knowledge supplied with the question."""

    text: str
    trusted: bool
    """True if the call passed the document as `trusted_knowledge`."""


@dataclass
class Turn:
    """State of one question, discarded after the answer. Records in the memory stay."""

    user_message: HumanMessage
    """User's message; marked if it is untrusted."""
    dialogue: list[BaseMessage]
    """Earlier messages of user and agent; those that are untrusted are marked."""
    window: list[BaseMessage]
    """Last messages of `dialogue` that are included in prompts."""
    knowledge: tuple[Passage, ...]
    """Passages of the documents supplied with the question."""
    meter: Meter
    clock: Callable[[], datetime]
    namespace: tuple[str, ...] = ()
    """Namespace in the memory."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Information about the origin, stored with each record."""
    streaming: bool = False
    """True if the answer is streamed token by token."""
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
    mark_numbers: frozenset[str] = frozenset()
    """Numbers of the data marks in the prompts of the question."""

    def record_reply(self, prompt: list[BaseMessage], reply: AIMessage) -> None:
        """Add the tokens of one model call, and the numbers of the marks in its prompt."""
        self.meter.record_usage(prompt, reply)
        self.mark_numbers |= find_mark_numbers(message.text for message in prompt)

    @property
    def question(self) -> str:
        """Text of the user's message."""
        return clean(self.user_message.text)

    def allowed_addresses(self) -> AllowedAddresses:
        """Return the web addresses that the user or a source wrote, not those that only the model wrote."""
        user_messages = [message for message in self.dialogue if isinstance(message, HumanMessage)]
        user_messages.append(self.user_message)
        trusted_texts = [clean(message.text) for message in user_messages if not is_marked(message)]
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
        return AllowedAddresses(trusted_texts, untrusted_addresses)

    def make_event(self, action: Action, text: str) -> dict[str, Any]:
        """Create the next event; return an update that adds this event to the agent's output."""
        tokens, has_memory = self.meter.usage["total_tokens"], action in ("thinking", "conclusion")
        records = tuple(self.recalled_records) if has_memory else ()
        event = Event(self.event_count, action, text, self.clock(), tokens, self.is_tainted, records)
        self.event_count += 1
        return {"events": [event]}


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
class Call:
    """Call of a tool."""

    name: str
    """Name of the tool as the model wrote it."""
    arguments: dict[str, Any]
    """Arguments as a JSON object."""
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex}")
    """Id that links the call to its result."""

    @property
    def finishes(self) -> bool:
        """True if the call says that no task is left."""
        return self.name in (FINISH, NOTHING)

    @property
    def safe_name(self) -> str:
        """Tool name without characters that providers reject in a message history."""
        return _UNSAFE.sub("_", self.name)[:64].strip("_") or "unnamed"


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

    The text is truncated to `Limits.result_tokens` tokens. Notes at its end say what was cut or left out. It
    does not contain the marks that label it as data in a prompt."""
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
    cut_characters: int = 0
    """Number of characters that were cut from the end of the result, because it was too long."""
    dropped_blocks: tuple[str, ...] = ()
    """Types of the parts of the result that were left out, because they are not text, such as `image`."""
    is_blocked: bool = False
    """True if the call was not run because untrusted text was read and the call was not approved."""
    has_run: bool = False
    """True if the tool was started."""

    @property
    def sufficient(self) -> bool:
        """True if the step succeeded with a non-empty result; JSON such as `null` or `[]` counts as empty.

        A result without text, such as an image, counts as empty, too.
        """
        text = self.result.rpartition("\n")[0] if self.dropped_blocks else self.result
        return self.status == "success" and text.strip() not in _EMPTY


class MemoryRecord(Protocol):
    """Text stored in the agent's memory, with its id, kind and author."""

    @property
    def id(self) -> str:
        """Id of the record."""
        ...

    @property
    def text(self) -> str:
        """Text of the record."""
        ...

    @property
    def kind(self) -> str:
        """Type of the record: knowledge, conversation, task or episode."""
        ...

    @property
    def trust(self) -> str:
        """Author of the text: user, agent or tool."""
        ...


@runtime_checkable
class AgentMemory(Protocol):
    """Memory across conversations; it must be thread-safe."""

    def add(
        self,
        text: str,
        kind: str = ...,
        namespace: Sequence[str] = ...,
        *,
        trust: str = ...,
        merge: bool = ...,
        **provenance: Any,
    ) -> str:
        """Store a text and return its id.

        Args:
            text: Text to store.
            kind: Type of the record: conversation, task, knowledge.
            namespace: Namespace of the owner.
            trust: Author of the text: user, agent or tool.
            merge: Allow merging into a record with the same content.
            provenance: Information about the origin, stored with the record.
        """
        ...

    def search(
        self, query: str, k: int = ..., *, namespace: Sequence[str] | None = ...
    ) -> Sequence[MemoryRecord]:
        """Return up to `k` matching records of `namespace` and the namespaces below it, best first.

        Args:
            query: Text to search for.
            k: Largest number of results.
            namespace: Owner of the records; None for all.
        """
        ...

"""Protocol of the agent's memory; `MemoryBank` implements it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


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
        """Return up to `k` matching records of `namespace` and the namespaces below it, best first."""
        ...

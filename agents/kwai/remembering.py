"""What the agent remembers with: whatever keeps, searches and lists records as `MemoryBank` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


class Remembered(Protocol):
    """A record that was found."""

    @property
    def id(self) -> str:
        """Its name in the memory."""
        ...

    @property
    def text(self) -> str:
        """What was said or found."""
        ...

    @property
    def kind(self) -> str:
        """knowledge, conversation, task or episode."""
        ...

    @property
    def trust(self) -> str:
        """Who worded it: user, agent or tool."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A memory that outlives the conversation; it must stand calls from several threads."""

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
        """Keep a text and return its id.

        Args:
            text: What is to be kept.
            kind: What it is: conversation, task, knowledge.
            namespace: Whose it is.
            trust: Who worded it: user, agent or tool.
            merge: Whether it may join a record that says the same.
            provenance: Where it came from, told with the record.
        """
        ...

    def search(
        self, query: str, k: int = ..., *, namespace: Sequence[str] | None = ...
    ) -> Sequence[Remembered]:
        """Return up to `k` records, best first, of `namespace` and all within it."""
        ...

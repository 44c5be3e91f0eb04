"""Profile of the agent, like ProfileInstructions in KwaiAgents (Pan et al. 2023, arXiv 2312.04889)."""

from __future__ import annotations

from dataclasses import dataclass

from scrubjay.agents.language.prompts import LANGUAGES


@dataclass(frozen=True)
class Profile:
    """Profile of the agent, at the beginning of every prompt.

    Only the agent's owner writes the profile. Memories and tools never change it.
    """

    name: str = "Scrubjay"
    """Name of the agent."""
    bio: str = ""
    """Short description of the agent."""
    instructions: str = ""
    """Instructions of the agent's owner."""
    language: str = "en"
    """Language of the prompts, en or zh; the answer is in the language of the question."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"name={self.name!r}: must not be empty")
        if self.language not in LANGUAGES:
            raise ValueError(
                f"language={self.language!r}: unknown language; choose from {', '.join(LANGUAGES)}"
            )

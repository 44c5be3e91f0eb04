"""Who the agent is, as KwaiAgents' ProfileInstructions (Pan et al. 2023, arXiv 2312.04889)."""

from __future__ import annotations

from dataclasses import dataclass

from scrubjay.agents.language.prompts import LANGUAGES


@dataclass(frozen=True)
class Profile:
    """What goes before everything else in every prompt. Only its owner writes it: no memory, no tool."""

    name: str = "Scrubjay"
    """What the agent calls itself."""
    bio: str = ""
    """A few sentences about it."""
    instructions: str = ""
    """How its owner wants it to work."""
    language: str = "en"
    """Language of the prompts, en or zh; the answer is in the language of the question."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"name={self.name!r}: an agent needs a name")
        if self.language not in LANGUAGES:
            raise ValueError(f"language={self.language!r}: there are prompts in {', '.join(LANGUAGES)}")

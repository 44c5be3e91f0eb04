"""Memories for agents that act: one contract, one checker, one registry, and sequence models over any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay.kernels.first_use import imported_on_first_use

if TYPE_CHECKING:
    from scrubjay.memory.bank import MemoryBank
    from scrubjay.memory.bank_surprise import SurpriseConfig
    from scrubjay.memory.base import Memory, MemoryConfig, State, detach_state
    from scrubjay.memory.check import MemoryLawError, check_memory
    from scrubjay.memory.registry import list_memories, make, make_config, name_of, register
    from scrubjay.memory.sequence import SequenceConfig, SequenceModel, match_parameters

__all__ = [
    "Memory",
    "MemoryBank",
    "MemoryConfig",
    "MemoryLawError",
    "SequenceConfig",
    "SequenceModel",
    "State",
    "SurpriseConfig",
    "check_memory",
    "detach_state",
    "list_memories",
    "make",
    "make_config",
    "match_parameters",
    "name_of",
    "register",
]

# A bank of texts must not wait for torch, nor a memory of vectors for a database.
__getattr__ = imported_on_first_use(
    __name__,
    {
        "bank": ["MemoryBank"],
        "bank_surprise": ["SurpriseConfig"],
        "base": ["Memory", "MemoryConfig", "State", "detach_state"],
        "check": ["MemoryLawError", "check_memory"],
        "registry": ["list_memories", "make", "make_config", "name_of", "register"],
        "sequence": ["SequenceConfig", "SequenceModel", "match_parameters"],
    },
)

"""Memories for agents that act: one contract, one checker, one registry, and sequence models over any of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scrubjay.memory.base import Memory, MemoryConfig, State, detach_state
from scrubjay.memory.check import MemoryLawError, check_memory
from scrubjay.memory.registry import list_memories, make, make_config, name_of, register

if TYPE_CHECKING:
    from scrubjay.memory.bank import MemoryBank
    from scrubjay.memory.sequence import SequenceConfig, SequenceModel, match_parameters

__all__ = [
    "Memory",
    "MemoryBank",
    "MemoryConfig",
    "MemoryLawError",
    "SequenceConfig",
    "SequenceModel",
    "State",
    "check_memory",
    "detach_state",
    "list_memories",
    "make",
    "make_config",
    "match_parameters",
    "name_of",
    "register",
]

# On first use: a memory alone must import neither huggingface_hub nor a database.
_LATER = {
    "MemoryBank": "bank",
    "SequenceConfig": "sequence",
    "SequenceModel": "sequence",
    "match_parameters": "sequence",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)

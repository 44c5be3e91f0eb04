"""Memories for agents that act: one contract, one checker, one registry, and sequence models over any of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "bank": ("MemoryBank",),
    "bank_surprise": ("SurpriseConfig",),
    "base": ("Memory", "MemoryConfig", "State", "detach_state"),
    "check": ("MemoryLawError", "check_memory"),
    "registry": ("list_memories", "make", "make_config", "name_of", "register"),
    "sequence": ("SequenceConfig", "SequenceModel", "match_parameters"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # On first use: a bank of texts must not wait for torch, nor a memory of vectors for a database.
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)

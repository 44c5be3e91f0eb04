"""Memories for agents that act: one contract, one checker, one registry, and sequence models over any of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scrubjay.memory.base import Memory, MemoryConfig, State, detach_state
from scrubjay.memory.check import MemoryLawError, check_memory
from scrubjay.memory.registry import list_memories, make, make_config, name_of, register

if TYPE_CHECKING:
    from scrubjay.memory.sequence import SequenceConfig, SequenceModel, match_parameters

__all__ = [
    "Memory",
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

_SEQUENCE = ("SequenceConfig", "SequenceModel", "match_parameters")


def __getattr__(name: str) -> Any:
    # On first use: a memory alone must not import huggingface_hub.
    if name not in _SEQUENCE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.sequence"), name)

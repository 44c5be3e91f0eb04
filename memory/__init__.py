"""Memories for agents that act: one contract, one checker, one registry."""

from scrubjay.memory.base import Memory, MemoryConfig, State, detach_state
from scrubjay.memory.registry import list_memories, make, make_config, name_of, register

__all__ = [
    "Memory",
    "MemoryConfig",
    "State",
    "detach_state",
    "list_memories",
    "make",
    "make_config",
    "name_of",
    "register",
]

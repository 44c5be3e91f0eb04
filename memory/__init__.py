"""Memories for agents that act: one contract, one checker, one registry."""

from scrubjay.memory.base import Memory, MemoryConfig, State, detach_state
from scrubjay.memory.check import MemoryLawError, check_memory
from scrubjay.memory.registry import list_memories, make, make_config, name_of, register

__all__ = [
    "Memory",
    "MemoryConfig",
    "MemoryLawError",
    "State",
    "check_memory",
    "detach_state",
    "list_memories",
    "make",
    "make_config",
    "name_of",
    "register",
]

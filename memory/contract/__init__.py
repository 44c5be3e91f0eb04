"""Contract of every memory, and the checker that tests it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.memory.contract.base import Memory as Memory
    from scrubjay.memory.contract.base import MemoryConfig as MemoryConfig
    from scrubjay.memory.contract.base import State as State
    from scrubjay.memory.contract.base import detach_state as detach_state
    from scrubjay.memory.contract.check import check_memory as check_memory
    from scrubjay.memory.contract.laws import MemoryLawError as MemoryLawError

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "base": ["Memory", "MemoryConfig", "State", "detach_state"],
        "check": ["check_memory"],
        "laws": ["MemoryLawError"],
    },
)

"""Memory modules for agents.

The package has a contract for memories, a checker of the contract, a registry of memories by name, and
sequence models that work with any memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.memory.bank.bank import MemoryBank as MemoryBank
    from scrubjay.memory.bank.file.damage import DamagedBankError as DamagedBankError
    from scrubjay.memory.bank.surprise import SurpriseConfig as SurpriseConfig
    from scrubjay.memory.context.infiniretri import InfiniRetri as InfiniRetri
    from scrubjay.memory.contract.base import Memory as Memory
    from scrubjay.memory.contract.base import MemoryConfig as MemoryConfig
    from scrubjay.memory.contract.base import State as State
    from scrubjay.memory.contract.base import detach_state as detach_state
    from scrubjay.memory.contract.check import check_memory as check_memory
    from scrubjay.memory.contract.laws import MemoryLawError as MemoryLawError
    from scrubjay.memory.registry import list_memories as list_memories
    from scrubjay.memory.registry import make as make
    from scrubjay.memory.registry import make_config as make_config
    from scrubjay.memory.registry import name_of as name_of
    from scrubjay.memory.registry import register as register
    from scrubjay.memory.sequence import SequenceConfig as SequenceConfig
    from scrubjay.memory.sequence import SequenceModel as SequenceModel
    from scrubjay.memory.sequence import match_parameters as match_parameters

# Importing a memory bank must not load torch, and importing a memory module must not load a database.
__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "bank.bank": ["MemoryBank"],
        "bank.file.damage": ["DamagedBankError"],
        "bank.surprise": ["SurpriseConfig"],
        "context.infiniretri": ["InfiniRetri"],
        "contract.base": ["Memory", "MemoryConfig", "State", "detach_state"],
        "contract.check": ["check_memory"],
        "contract.laws": ["MemoryLawError"],
        "registry": ["list_memories", "make", "make_config", "name_of", "register"],
        "sequence": ["SequenceConfig", "SequenceModel", "match_parameters"],
    },
    packages=("bank", "context", "contract"),
    extras={"transformers": "lm"},
)

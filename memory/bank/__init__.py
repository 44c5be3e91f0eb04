"""The episodic bank: dated records in one SQLite file, recalled by words and by meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import face

if TYPE_CHECKING:
    from scrubjay.memory.bank.bank import MemoryBank as MemoryBank
    from scrubjay.memory.bank.consolidation import Change as Change
    from scrubjay.memory.bank.consolidation import Consolidation as Consolidation
    from scrubjay.memory.bank.consolidation import Decision as Decision
    from scrubjay.memory.bank.file.damage import DamagedBankError as DamagedBankError
    from scrubjay.memory.bank.surprise import SurpriseConfig as SurpriseConfig

# A bank of texts must not wait for torch.
__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "bank": ["MemoryBank"],
        "consolidation": ["Change", "Consolidation", "Decision"],
        "file.damage": ["DamagedBankError"],
        "surprise": ["SurpriseConfig"],
    },
)

"""Episodic memory bank: dated records in one SQLite file, retrieved by keywords and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.memory.bank.bank import MemoryBank as MemoryBank
    from scrubjay.memory.bank.consolidation import Change as Change
    from scrubjay.memory.bank.consolidation import Consolidation as Consolidation
    from scrubjay.memory.bank.consolidation import Decision as Decision
    from scrubjay.memory.bank.file.damage import DamagedBankError as DamagedBankError
    from scrubjay.memory.bank.surprise import SurpriseConfig as SurpriseConfig

# Lazy imports: a bank without embeddings must not import torch.
__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "bank": ["MemoryBank"],
        "consolidation": ["Change", "Consolidation", "Decision"],
        "file.damage": ["DamagedBankError"],
        "surprise": ["SurpriseConfig"],
    },
)

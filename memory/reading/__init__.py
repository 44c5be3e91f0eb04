"""Readers for texts longer than a model's context window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.memory.reading.infiniretri import InfiniRetri as InfiniRetri

__all__, __getattr__, __dir__ = lazy_exports(
    __name__, {"infiniretri": ["InfiniRetri"]}, extras={"transformers": "lm"}
)

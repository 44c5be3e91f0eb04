"""Readers for texts longer than a model's context window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import face

if TYPE_CHECKING:
    from scrubjay.memory.reading.infiniretri import InfiniRetri as InfiniRetri

__all__, __getattr__, __dir__ = face(
    __name__, {"infiniretri": ["InfiniRetri"]}, extras={"transformers": "lm"}
)

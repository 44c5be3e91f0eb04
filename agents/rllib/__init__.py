"""Distributed training of scrubjay's policies and learners with RLlib's new API stack."""

from scrubjay.agents.rllib.config import (
    SegmentConfig,
    SegmentGAMATR,
    SegmentGAMATRConfig,
    SegmentPPO,
    SegmentPPOConfig,
    SegmentTraining,
)
from scrubjay.agents.rllib.module import MemoryModule, TeamModule

__all__ = [
    "MemoryModule",
    "SegmentConfig",
    "SegmentGAMATR",
    "SegmentGAMATRConfig",
    "SegmentPPO",
    "SegmentPPOConfig",
    "SegmentTraining",
    "TeamModule",
]

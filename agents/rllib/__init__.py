"""Our policies, samplers and learners in the hands of RLlib's new API stack, which distributes them."""

from scrubjay.agents.rllib.config import SegmentConfig, SegmentTraining
from scrubjay.agents.rllib.module import MemoryModule, TeamModule
from scrubjay.agents.rllib.named import SegmentGAMATR, SegmentGAMATRConfig, SegmentPPO, SegmentPPOConfig

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

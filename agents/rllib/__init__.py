"""Our policies, samplers and learners in the hands of RLlib's new API stack, which distributes them."""

from scrubjay.agents.rllib.gamatr import SegmentGAMATR, SegmentGAMATRConfig, TeamModule
from scrubjay.agents.rllib.module import MemoryModule
from scrubjay.agents.rllib.ppo import SegmentPPO, SegmentPPOConfig

__all__ = [
    "MemoryModule",
    "SegmentGAMATR",
    "SegmentGAMATRConfig",
    "SegmentPPO",
    "SegmentPPOConfig",
    "TeamModule",
]

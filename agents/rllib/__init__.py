"""Our policies, samplers and learners in the hands of RLlib's new API stack, which distributes them."""

from scrubjay.agents.rllib.gamatr import SegmentGAMATR, SegmentGAMATRConfig
from scrubjay.agents.rllib.module import MemoryModule
from scrubjay.agents.rllib.ppo import SegmentPPO, SegmentPPOConfig
from scrubjay.agents.rllib.team_module import TeamModule

__all__ = [
    "MemoryModule",
    "SegmentGAMATR",
    "SegmentGAMATRConfig",
    "SegmentPPO",
    "SegmentPPOConfig",
    "TeamModule",
]

"""Our policy, sampler and learner in the hands of RLlib's new API stack, which distributes them."""

from scrubjay.agents.rllib.algorithm import SegmentPPO, SegmentPPOConfig
from scrubjay.agents.rllib.module import MemoryModule

__all__ = ["MemoryModule", "SegmentPPO", "SegmentPPOConfig"]

"""Reward scaling, which makes a learner independent of the unit of rewards."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from scrubjay.agents.rl.advantages import discounted_returns
from scrubjay.agents.rl.data_parallel import SingleProcess
from scrubjay.agents.rl.segment import Segment


class RewardScale:
    """Reward scaling by the root mean square of the discounted returns of all segments so far.

    A critic needs many updates to reach large returns. Until then the gradient of the value loss dominates
    the gradient of the policy loss. The method is the reward scaling of Engstrom et al. 2020 (arXiv
    2005.12729, section 2), with two differences. The statistics are computed once per segment, and returns
    end at the last step of the segment. The mean is not subtracted, so that rewards keep their sign. Rewards
    are unchanged while all of them are 0.
    """

    def __init__(self, gamma: float, peers: SingleProcess) -> None:
        self._gamma, self._peers = gamma, peers
        self._total = 0.0
        self._segments = 0

    def __call__(self, segment: Segment) -> Segment:
        """Update the statistics with a segment, and return the segment with scaled rewards."""
        returns = discounted_returns(segment.rewards, segment.terminated, segment.truncated, self._gamma)
        mean, deviation = self._peers.moments(returns)
        self._total += (mean.square() + deviation.square()).item()
        self._segments += 1
        scale = math.sqrt(self._total / self._segments)
        return segment if scale == 0 else replace(segment, rewards=segment.rewards / scale)

    def get_state(self) -> dict[str, Any]:
        """Return the running statistics."""
        return {"total": self._total, "segments": self._segments}

    def set_state(self, state: Any) -> None:
        """Restore a state that `get_state` returned. Raises ValueError if `state` is invalid."""
        total, segments = (
            state.get(name) if isinstance(state, dict) else None for name in ("total", "segments")
        )
        if type(total) is not float or type(segments) is not int or not 0 <= total < math.inf or segments < 0:
            raise ValueError(
                f"reward scale: total={total!r:.40} must be a finite float and segments={segments!r:.40} an "
                "integer, both at least 0"
            )
        self._total, self._segments = total, segments

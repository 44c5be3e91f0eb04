"""Reward scaling, which makes a learner independent of the unit of rewards."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from scrubjay.agents.rl.advantages import discounted_returns
from scrubjay.agents.rl.data_parallel import SingleProcess
from scrubjay.agents.rl.segment import Segment


class RewardScale:
    """Reward scaling by the root mean square of the discounted returns of all past segments.

    A critic needs many updates to reach large returns, and until then the gradient of its loss dominates that
    of the policy. This is reward scaling as in Engstrom et al. 2020 (arXiv 2005.12729, section 2), with two
    differences: the statistics are those of whole segments, whose returns end at the segment's end, and the
    mean is not subtracted, so that rewards keep their sign. Rewards are unchanged while all of them are 0.
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
        """Restore a state that `get_state` returned. Raises ValueError if it is invalid."""
        total, segments = (
            state.get(name) if isinstance(state, dict) else None for name in ("total", "segments")
        )
        if type(total) is not float or type(segments) is not int or not 0 <= total < math.inf or segments < 0:
            raise ValueError(
                f"reward scale: total={total!r:.40}, segments={segments!r:.40}: expected a finite float and "
                "an integer, neither negative"
            )
        self._total, self._segments = total, segments

"""Reward scaling: what a learner sees of rewards does not hang on their unit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from scrubjay.agents.rl.advantages import discounted_returns
from scrubjay.agents.rl.peers import Alone
from scrubjay.agents.rl.segment import Segment


class RewardScale:
    """Divides rewards by the root mean square of the discounted returns of all segments so far.

    A critic that must tell numbers in the tens from features near 1 takes long to reach them, and until then
    its error outweighs the policy's gradient. Known as reward scaling (Engstrom et al. 2020, arXiv
    2005.12729, section 2), here by whole segments, whose returns end where they do, and without a mean, so
    that a reward keeps its sign. Where all rewards so far were 0 they stay.
    """

    def __init__(self, gamma: float, peers: Alone) -> None:
        self._gamma, self._peers = gamma, peers
        self._total = 0.0
        self._segments = 0

    def __call__(self, segment: Segment) -> Segment:
        """Take note of a segment's rewards, and return it with them divided."""
        returns = discounted_returns(segment.rewards, segment.terminated, segment.truncated, self._gamma)
        mean, deviation = self._peers.moments(returns)
        self._total += (mean.square() + deviation.square()).item()
        self._segments += 1
        scale = math.sqrt(self._total / self._segments)
        return segment if scale == 0 else replace(segment, rewards=segment.rewards / scale)

    def get_state(self) -> dict[str, Any]:
        """Return what it has taken note of."""
        return {"total": self._total, "segments": self._segments}

    def set_state(self, state: Any) -> None:
        """Go on from what `get_state` returned. Raises ValueError if that cannot be."""
        total, segments = (
            state.get(name) if isinstance(state, dict) else None for name in ("total", "segments")
        )
        if type(total) is not float or type(segments) is not int or not 0 <= total < math.inf or segments < 0:
            raise ValueError(
                f"reward scale of {total!r:.40} in {segments!r:.40} segments: expected a sum and a number"
            )
        self._total, self._segments = total, segments

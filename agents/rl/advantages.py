"""Generalized advantage estimation (GAE), discounted returns and reward scaling."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.agents.rl.learner import SingleProcess
from scrubjay.agents.rl.segment import Segment


def generalized_advantage(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    last_values: Float[Tensor, "batch"],
    bootstrap_values: Float[Tensor, "batch time"],
    terminated: Bool[Tensor, "batch time"],
    truncated: Bool[Tensor, "batch time"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Return generalized advantages, and the returns `advantages + values` as targets of the critic.

    Implements equation 16 of Schulman et al. 2016 (arXiv 1506.02438). The TD error of a step is
    `reward + gamma * V - value`. V is 0 if the step is terminated, the bootstrap value if the step is
    truncated, and the value of the next step in all other cases. Advantages never include rewards or values
    of a later episode. A step that is both terminated and truncated counts as terminated.

    Args:
        rewards: Reward of each step.
        values: Value estimate of each step.
        last_values: Value estimate of the observation that follows the segment.
        bootstrap_values: Value estimate of the final observation of truncated steps; other entries are not
            read.
        terminated: True where the step ended an episode in a terminal state.
        truncated: True where the step ended an episode early, such as by a time limit.
        gamma: Discount factor.
        lam: GAE lambda, from 0 (one-step TD error) to 1 (discounted return minus value).
    """
    following = torch.cat([values[:, 1:], last_values[:, None]], dim=1)
    following = torch.where(truncated, bootstrap_values, following).masked_fill(terminated, 0)
    errors = (rewards + gamma * following - values).unbind(dim=1)
    ends = (terminated | truncated).unbind(dim=1)
    advantage = torch.zeros_like(last_values)
    backwards = []
    for error, end in zip(reversed(errors), reversed(ends), strict=True):
        advantage = torch.add(error, advantage.masked_fill(end, 0), alpha=gamma * lam)
        backwards.append(advantage)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values


def discounted_returns(
    rewards: Float[Tensor, "batch time"],
    terminated: Bool[Tensor, "batch time"],
    truncated: Bool[Tensor, "batch time"],
    gamma: float,
) -> Float[Tensor, "batch time"]:
    """Return the discounted sum of rewards from each step to the end of its episode or of the segment."""
    nothing = torch.zeros_like(rewards)
    returns, _ = generalized_advantage(
        rewards, nothing, nothing[:, 0], nothing, terminated, truncated, gamma, 1.0
    )
    return returns


class RewardScale:
    """Reward scaling by the root mean square of the discounted returns of all segments so far.

    A critic needs many updates to reach large returns. Until then the gradient of the value loss dominates
    the gradient of the policy loss. The method is the reward scaling of Engstrom et al. 2020 (arXiv
    2005.12729, section 2), which `VecNormalize` of Stable-Baselines3 and `NormalizeReward` of gymnasium
    implement, with four differences:

    - The statistics are computed once per segment, before the update, instead of at each step.
    - A return is the discounted sum of rewards from a step to the end of its episode or segment. The others
      sum from the start of the episode to the step. On the reversed segment both have the same statistics.
    - Rewards are divided by the root mean square of returns, also if their mean is far from 0, instead of by
      the standard deviation. Neither method shifts rewards.
    - Scaled rewards are not clipped. Rewards are unchanged while all of them are 0.
    """

    def __init__(self, gamma: float, peers: SingleProcess) -> None:
        self._gamma, self._peers = gamma, peers
        self._total = 0.0
        self._segments = 0

    def __call__(self, segment: Segment) -> Segment:
        """Update the statistics with a segment, and return the segment with scaled rewards."""
        scale = self.update(segment)
        return segment if scale == 0 else replace(segment, rewards=segment.rewards / scale)

    def update(self, segment: Segment) -> float:
        """Update the statistics with a segment; return the root mean square of all returns so far."""
        returns = discounted_returns(segment.rewards, segment.terminated, segment.truncated, self._gamma)
        mean, deviation = self._peers.moments(returns)
        self._total += (mean.square() + deviation.square()).item()
        self._segments += 1
        return math.sqrt(self._total / self._segments)

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

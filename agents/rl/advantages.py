"""Generalized advantage estimation (GAE) and discounted returns."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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

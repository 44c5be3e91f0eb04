"""Advantages: how much better an action turned out than the critic expected."""

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
    """Return generalised advantages and the returns `advantages + values` that the critic learns.

    What follows a step is worth 0 if it terminated, its bootstrap value if it was truncated, the next value
    otherwise; nothing crosses the end of an episode. A step both terminated and truncated counts as
    terminated. Schulman et al. 2016 (arXiv 1506.02438), equation 16.

    Args:
        rewards: Of every step.
        values: What the critic expected at every step.
        last_values: What it expects after the segment.
        bootstrap_values: What it expects after steps that were truncated; read nowhere else.
        terminated: Where an episode ended by itself.
        truncated: Where it was cut off.
        gamma: Discount per step.
        lam: Trust in rewards (1) over the critic (0).
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
    """Return the discounted rewards from each step on, to the end of its episode or of the segment."""
    nothing = torch.zeros_like(rewards)
    returns, _ = generalized_advantage(
        rewards, nothing, nothing[:, 0], nothing, terminated, truncated, gamma, 1.0
    )
    return returns

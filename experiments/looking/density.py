"""Recall density: how much what is done and valued now hangs on each earlier observation.

By the gradient of a number at step t with respect to what the encoder made of the observation at step s, for
all s up to t, divided by their sum over s (as POPGym Arcade has it of pixels, Wang et al. 2025, arXiv
2503.01450). The numbers are the value, and the chosen action's logit, less the mean of all logits; of numbers
that are chosen, their means.

A gradient g is as large as it changes the number, at a root mean square, when the observation becomes another
one of this episode's: sqrt(g C g), with C the covariance of what the encoder made of them. Its plain length
also counts directions that no observation differs in: of a `gru` that named the fourth last card, it was
largest for the second last.

A memory that cuts what it stores from the graph, as `hcam` does by default, shows its density only as far as
gradients reach: so what it reads beyond is seen in what it says it recalled, alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.agents.rl.distributions import Categorical, Distribution
from scrubjay.agents.rl.policy import Policy

_AT_ONCE = 32
"""Steps whose gradients are taken side by side, each in a row of its own."""


def recall_density(
    policy: Policy,
    encoded: Float[Tensor, "time dim"],
    seen: Float[Tensor, "time dim"] | None,
    actions: Tensor,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Float[Tensor, "time time"]]:
    """Return the density of the action and of the value: rows are the steps t, columns the steps s.

    Args:
        policy: Who lived through the episode.
        encoded: What its encoder made of each observation.
        seen: What `policy.view` made of them, where it has one.
        actions: What it chose, `[time, ...]`, as it samples.
        on_step: Called with the number of steps that are done.
    """
    time = len(encoded)
    found = {name: torch.zeros(time, time) for name in ("action", "value")}
    spread = [_covariance(part) for part in (encoded, seen) if part is not None]
    for first in range(0, time, _AT_ONCE):
        last = min(first + _AT_ONCE, time)
        # Rows are strangers to each other: one gradient of their sum is the gradient of each.
        rows = torch.arange(last - first)
        x = encoded[:last].expand(len(rows), -1, -1).clone().requires_grad_()
        with torch.enable_grad():
            remembered, _ = policy.memory(x, policy.initial_state(len(rows)))
            features = remembered[rows, first + rows]
            view = None if seen is None else seen[first:last].clone().requires_grad_()
            features = features if view is None else features + view
            numbers = {
                "action": _chosen(policy.actor(features), actions[first:last]),
                "value": policy.critic(features).squeeze(-1),
            }
        for name, number in numbers.items():
            leaves = [x] if view is None else [x, view]
            grads = torch.autograd.grad(number.sum(), leaves, retain_graph=True)
            sizes = _size(grads[0], spread[0])
            if view is not None:
                sizes[rows, first + rows] += _size(grads[1], spread[1])
            total = sizes.sum(dim=1, keepdim=True)
            found[name][first:last, :last] = torch.where(total > 0, sizes / total, 0)
        on_step(last)
    return found


def _covariance(encoded: Float[Tensor, "time dim"]) -> Float[Tensor, "dim dim"]:
    apart = encoded - encoded.mean(dim=0)
    return apart.T @ apart / len(apart)


def _size(grad: Float[Tensor, "*batch dim"], spread: Float[Tensor, "dim dim"]) -> Float[Tensor, "*batch"]:
    return (grad @ spread * grad).sum(dim=-1).clamp(min=0).sqrt()


def _chosen(distribution: Distribution, actions: Tensor) -> Float[Tensor, " time"]:
    """Return a number for each action whose gradient is that of its logit, or of the means."""
    if not isinstance(distribution, Categorical):
        return distribution.mode().flatten(1).sum(dim=1)
    # Probabilities near 1 would leave no gradient; so normalisers are left out.
    logits = distribution.log_probs - distribution.log_probs.mean(dim=-1, keepdim=True)
    return logits.gather(-1, actions.unsqueeze(-1)).flatten(1).sum(dim=1)

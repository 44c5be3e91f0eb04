"""Recall density: influence of each earlier observation on the current action and value.

The density is the size of the gradient of a scalar at step t with respect to the encoding of the observation
at step s, for all s up to t, divided by the sum over s (POPGym Arcade defines it for pixels, Wang et al.
2025, arXiv 2503.01450). The scalars are the value and the logit of the chosen action minus the mean of all
logits; for continuous actions, the sum of the means.

The size of a gradient g is the root mean square change of the scalar when the observation is replaced by
another one of the same episode: sqrt(g C g), with C the covariance of the encodings. The Euclidean norm would
also count directions in which no observations differ: for a `gru` that named the fourth last card, it was
largest at the second last.

A memory that detaches its stored values from the graph, as `hcam` does by default, has a density only within
its gradient window. Older reads appear only in the recalls that the memory reports.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.agents.rl.distributions import Categorical, Distribution
from scrubjay.agents.rl.policy import Policy

_AT_ONCE = 32
"""Number of steps whose gradients are computed in one batch, one batch row per step."""


def recall_density(
    policy: Policy,
    encodings: Float[Tensor, "time dim"],
    skip_features: Float[Tensor, "time dim"] | None,
    actions: Tensor,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Float[Tensor, "time time"]]:
    """Return the recall density of the action and of the value; rows are steps t, columns are steps s.

    Args:
        policy: Policy of the episode.
        encodings: Encoder output of each observation.
        skip_features: Output of `policy.view` per observation; None without a skip connection.
        actions: Actions as sampled by the policy, `[time, ...]`.
        on_step: Callback with the number of steps done.
    """
    time = len(encodings)
    density = {name: torch.zeros(time, time) for name in ("action", "value")}
    spread = [_covariance(part) for part in (encodings, skip_features) if part is not None]
    for first in range(0, time, _AT_ONCE):
        last = min(first + _AT_ONCE, time)
        # Batch rows are independent, so the gradient of their sum contains the gradient of each row.
        rows = torch.arange(last - first)
        x = encodings[:last].expand(len(rows), -1, -1).clone().requires_grad_()
        with torch.enable_grad():
            memory_output, _ = policy.memory(x, policy.initial_state(len(rows)))
            features = memory_output[rows, first + rows]
            view = None if skip_features is None else skip_features[first:last].clone().requires_grad_()
            features = features if view is None else features + view
            numbers = {
                "action": _action_scores(policy.actor(features), actions[first:last]),
                "value": policy.critic(features).squeeze(-1),
            }
        for name, number in numbers.items():
            leaves = [x] if view is None else [x, view]
            grads = torch.autograd.grad(number.sum(), leaves, retain_graph=True)
            sizes = _gradient_size(grads[0], spread[0])
            if view is not None:
                sizes[rows, first + rows] += _gradient_size(grads[1], spread[1])
            total = sizes.sum(dim=1, keepdim=True)
            density[name][first:last, :last] = torch.where(total > 0, sizes / total, 0)
        on_step(last)
    return density


def _covariance(encodings: Float[Tensor, "time dim"]) -> Float[Tensor, "dim dim"]:
    centered_encodings = encodings - encodings.mean(dim=0)
    return centered_encodings.T @ centered_encodings / len(centered_encodings)


def _gradient_size(
    grad: Float[Tensor, "*batch dim"], spread: Float[Tensor, "dim dim"]
) -> Float[Tensor, "*batch"]:
    return (grad @ spread * grad).sum(dim=-1).clamp(min=0).sqrt()


def _action_scores(distribution: Distribution, actions: Tensor) -> Float[Tensor, " time"]:
    """Return a differentiable score of each action: its centered logit, or the sum of continuous means."""
    if not isinstance(distribution, Categorical):
        return distribution.mode().flatten(1).sum(dim=1)
    # The gradient of a probability near 1 vanishes; centered logits avoid the softmax normalization.
    logits = distribution.log_probs - distribution.log_probs.mean(dim=-1, keepdim=True)
    return logits.gather(-1, actions.unsqueeze(-1)).flatten(1).sum(dim=1)

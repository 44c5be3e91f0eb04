"""Recall density: influence of each earlier observation on the current action and value.

A scalar output at step t has a gradient with respect to the encoding of the observation at each step s up to
t. The density at (t, s) is the size of this gradient divided by the sum of the sizes over all s. POPGym
Arcade (Wang et al. 2025, arXiv 2503.01450) defines the density for pixels. There are two outputs. One is the
value. The other is the action score: the logit of the chosen action minus the mean of all logits, or for
continuous actions the sum of the means.

The size of a gradient g is sqrt(g C g), with the covariance C of the encodings of the episode. To first order
this is the root mean square change of the output if the encoding varies as it does within the episode. The
Euclidean norm of g would also count directions in which the encodings do not vary. For example, a
`gru` was trained to name the fourth last card. The Euclidean norm of its gradient was largest at the second
last card.

A memory may detach its stored values from the graph, as `hcam` does by default. No gradient passes through
detached values, so that the density of their steps is zero. Such steps appear only in the recalls that the
memory reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.agents.rl.composite import Composite, split_actions
from scrubjay.agents.rl.distributions import IMPOSSIBLE, Categorical, Distribution
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.trunk import Trunk

_AT_ONCE = 32
"""Number of steps whose gradients are computed in one batch, one batch row per step."""


def recall_density(
    policy: Policy,
    encodings: Float[Tensor, "time dim"],
    skip_features: Float[Tensor, "time dim"] | None,
    actions: Tensor,
    masks: Bool[Tensor, "time actions"] | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    trunk: Trunk | None = None,
    names: Sequence[str] = ("action", "value"),
) -> dict[str, Float[Tensor, "time time"]]:
    """Return the recall densities `names` by name, each of shape `[time, time]`.

    Row t is the step of the action or value. Column s is the step of the observation; the density is 0 for
    s > t.

    Args:
        policy: Policy of the episode.
        encodings: Encoder output of each observation.
        skip_features: Output of `trunk.view` per observation; None without a skip connection.
        actions: Actions as sampled by the policy, `[time, ...]`.
        masks: Action masks; None if all actions are allowed.
        on_step: Callback with the number of steps done.
        trunk: Trunk whose output the heads receive: `policy.critic_trunk` for the value of a policy that has
            one; None for `policy`.
        names: "action", "value" or both.
    """
    time, trunk = len(encodings), policy if trunk is None else trunk
    density = {name: torch.zeros(time, time) for name in names}
    differences = [part - part.mean(dim=0) for part in (encodings, skip_features) if part is not None]
    spread = [part.T @ part / len(part) for part in differences]

    def restrict(features: Tensor, part: slice) -> Distribution:
        return policy.actor(features) if masks is None else policy.actor(features, masks[part])

    for first in range(0, time, _AT_ONCE):
        last = min(first + _AT_ONCE, time)
        # Batch rows are independent, so the gradient of their sum contains the gradient of each row.
        rows = torch.arange(last - first)
        x = encodings[:last].expand(len(rows), -1, -1).clone().requires_grad_()
        with torch.enable_grad():
            memory_output, _ = trunk.memory(x, trunk.memory.initial_state(len(rows)))
            features = memory_output[rows, first + rows]
            view = None if skip_features is None else skip_features[first:last].clone().requires_grad_()
            features = features if view is None else features + view
            numbers = {}
            if "action" in names:
                numbers["action"] = _action_scores(
                    restrict(features, slice(first, last)), actions[first:last]
                )
            if "value" in names:
                numbers["value"] = policy.critic(features).squeeze(-1)
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


def _gradient_size(
    grad: Float[Tensor, "*batch dim"], spread: Float[Tensor, "dim dim"]
) -> Float[Tensor, "*batch"]:
    return (grad @ spread * grad).sum(dim=-1).clamp(min=0).sqrt()


def _action_scores(distribution: Distribution, actions: Tensor) -> Float[Tensor, " time"]:
    """Return a differentiable score of each action.

    The score of a discrete action is its logit minus the mean of the logits of all allowed actions. The score
    of a continuous action is the sum of the means of its distribution. The score of a Dict or Tuple action is
    the sum over its parts.
    """
    if isinstance(distribution, Composite):
        pairs = zip(distribution.parts, split_actions(distribution.leaves, actions), strict=True)
        return torch.stack([_action_scores(part, own) for part, own in pairs]).sum(dim=0)
    if not isinstance(distribution, Categorical):
        return distribution.mode().flatten(1).sum(dim=1)
    # The gradient of a probability near 1 vanishes; centered logits avoid the softmax normalization.
    log_probs = distribution.log_probs
    is_possible = log_probs > 0.5 * IMPOSSIBLE
    mean = torch.where(is_possible, log_probs, 0).sum(dim=-1, keepdim=True) / is_possible.sum(
        dim=-1, keepdim=True
    )
    logits = log_probs - mean
    return logits.gather(-1, actions.unsqueeze(-1)).flatten(1).sum(dim=1)

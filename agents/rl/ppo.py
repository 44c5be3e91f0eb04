"""Proximal policy optimisation, with backpropagation through time cut at the borders of segments."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scrubjay.agents.rl.advantages import generalized_advantage
from scrubjay.agents.rl.auxiliary import HEADS
from scrubjay.agents.rl.distributions import Categorical, CategoricalHead
from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.rl.optimizers import adam, restore, take_step
from scrubjay.agents.rl.peers import Alone
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.reward_scale import RewardScale
from scrubjay.agents.rl.segment import Segment
from scrubjay.memory.serialization import LATER


@dataclass(frozen=True)
class PPOConfig(LearnerConfig):
    """Settings of `PPO`. Raises ValueError on an impossible one."""

    shares: ClassVar[bool] = True
    rows_by: ClassVar[str | None] = "num_minibatches"

    learning_rate: float = 3e-4
    """Adam's step size."""
    gamma: float = 0.99
    """Discount per step; 1 for episodes that end by themselves."""
    gae_lambda: float = 0.95
    """Trust in rewards (1) over the critic (0) when estimating advantages."""
    clip: float = 0.2
    """How far an action's probability may move, as a ratio, before its gradient is cut."""
    epochs: int = 4
    """Passes over each batch."""
    num_minibatches: int = 4
    """Gradient steps per pass; a minibatch is a set of whole rows."""
    entropy_coefficient: float = 0.01
    """Weight of the bonus for undecided policies."""
    barrier_coefficient: float = field(default=0.0, metadata=LATER)
    """Weight of the log barrier, KL(uniform, policy), by which no choice becomes too rare to be tried."""
    value_coefficient: float = 0.5
    """Weight of the critic's squared error."""
    reconstruction_coefficient: float = 0.0
    """Weight of the reconstruction loss; above 0 the policy needs `reconstruction=True`."""
    auxiliary_coefficient: float = field(default=0.0, metadata=LATER)
    """Weight of the losses of the policy's auxiliary heads; above 0 it needs `auxiliary=(...)`."""
    max_grad_norm: float = 0.5
    """Norm to which longer gradients are shortened."""
    normalize_advantage: bool = True
    """Whether to bring advantages to mean 0 and deviation 1 over the whole batch."""
    least_deviation: float = field(default=0.0, metadata=LATER)
    """Deviation below which they are not stretched to 1: where nothing is left to learn, they are noise."""
    scale_rewards: bool = field(default=False, metadata=LATER)
    """Whether rewards are brought to the scale of their returns, so that their unit does not matter; values,
    and losses of them, are of that scale."""
    target_kl: float | None = None
    """Divergence from the sampling policy, in nats, after which the remaining passes are skipped."""
    anneal: bool = field(default=False, metadata=LATER)
    """Whether the step size falls, in a straight line, to 0 at the end of the run."""
    anneal_steps: int | None = field(default=None, metadata=LATER)
    """Environment steps over which it does; by default those that the run was begun for."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1 or not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gamma={self.gamma}, gae_lambda={self.gae_lambda}: both must lie in [0, 1]")
        if self.epochs < 1 or self.num_minibatches < 1:
            raise ValueError(
                f"epochs={self.epochs}, num_minibatches={self.num_minibatches}: both must be at least 1"
            )
        weights = ("entropy", "barrier", "value", "reconstruction", "auxiliary")
        for name in (*(f"{weight}_coefficient" for weight in weights), "least_deviation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be a number, and not negative")
        if self.least_deviation and not self.normalize_advantage:
            raise ValueError(
                f"least_deviation={self.least_deviation}: is of advantages that are normalised; "
                "use normalize_advantage=True"
            )
        if self.target_kl is not None and not self.target_kl > 0:
            raise ValueError(f"target_kl={self.target_kl}: must be positive, or None for no limit")
        if self.anneal_steps is not None and not (self.anneal and self.anneal_steps > 0):
            raise ValueError(
                f"anneal={self.anneal}, anneal_steps={self.anneal_steps}: give steps, at least 1, with "
                "anneal=True, or None"
            )
        if not (0 < self.learning_rate < math.inf and self.clip > 0 and self.max_grad_norm > 0):
            raise ValueError(
                f"learning_rate={self.learning_rate}, clip={self.clip}, max_grad_norm={self.max_grad_norm}: "
                "all must be positive, and no step size is without bounds"
            )

    def over(self, total_steps: int) -> Self:
        """Return the settings for a run of so many environment steps."""
        return replace(self, anneal_steps=total_steps) if self.anneal and not self.anneal_steps else self

    def build(self, policy: Policy, seed: int = 0, peers: Alone | None = None) -> PPO:
        """Return PPO of `policy`; raises ValueError if that lacks a head that the settings ask for.

        Or if a step size is to fall, and nobody has said over how many steps; see `over`.
        """
        return PPO(policy, self, seed, peers)


class PPO:
    """Improves a policy on the segments it sampled itself.

    Schulman et al. 2017 (arXiv 1707.06347), equations 7 and 9, with the critic's error left unclipped. The
    log barrier, if wanted, is that of Agarwal et al. 2021 (arXiv 1908.00261): its gradient does not vanish
    with a choice's probability, as the entropy's does.
    Each segment starts from the state that was carried into it, as constant; minibatches are whole rows.

    With `peers`, learners in several processes make one update together: each is given some rows of the
    batch, and all have the same seed. Minibatches, gradients and the advantages' normalisation are over all
    rows, so the update is the one that a single learner would make of the whole batch; only auxiliary losses
    of what comes later are, in each learner, means over its own rows.
    """

    def __init__(
        self, policy: Policy, config: PPOConfig | None = None, seed: int = 0, peers: Alone | None = None
    ) -> None:
        self.policy = policy
        self.peers = peers if peers is not None else Alone()
        self.config = config if config is not None else PPOConfig()
        if self.config.reconstruction_coefficient > 0 and policy.reconstruction is None:
            raise ValueError(
                f"reconstruction_coefficient={self.config.reconstruction_coefficient} needs a policy built "
                "with PolicyConfig(reconstruction=True)"
            )
        if self.config.auxiliary_coefficient > 0 and not policy.auxiliary:
            raise ValueError(
                f"auxiliary_coefficient={self.config.auxiliary_coefficient} needs a policy built with "
                f"PolicyConfig(auxiliary=(...)): of {', '.join(HEADS)}"
            )
        if self.config.barrier_coefficient > 0 and not isinstance(policy.actor, CategoricalHead):
            raise ValueError(
                f"barrier_coefficient={self.config.barrier_coefficient} needs actions that are choices, not "
                f"{policy.action_space}"
            )
        if self.config.anneal and self.config.anneal_steps is None:
            raise ValueError("anneal=True without anneal_steps: take config.over(total_steps) instead")
        self.steps = 0
        """Environment steps learned from."""
        self._parameters = list(policy.parameters())
        self.optimizer = adam(self._parameters, self.config.learning_rate)
        self.generator = torch.Generator().manual_seed(seed)
        self._scale = RewardScale(self.config.gamma, self.peers) if self.config.scale_rewards else None

    def update(self, segment: Segment) -> dict[str, float]:
        """Take `epochs * num_minibatches` gradient steps; return the means of what was measured.

        Raises ValueError if the segment has fewer rows than there are minibatches.
        """
        if self._scale is not None:
            segment = self._scale(segment)
        advantages, returns = self.advantages(segment)
        first, total = self.peers.place(segment.num_rows)
        rate = self._set_learning_rate()
        history: list[dict[str, Tensor]] = []
        for _ in range(self.config.epochs):
            epoch = []
            for index in self.minibatches(total):
                own = index[(index >= first) & (index < first + segment.num_rows)] - first
                share = len(own) / len(index)
                if not len(own):  # takes part all the same, with a row that does not count
                    own = index.new_zeros(1)
                own = own.to(segment.rewards.device)
                loss, metrics = self.loss(segment.rows(own), advantages[own], returns[own])
                metrics["losses/grad_norm"] = self.descend(loss if share == 1 else loss * share)
                if share < 1:
                    metrics = {name: value * share for name, value in metrics.items()}
                epoch.append(metrics)
            history += epoch
            if self.config.target_kl is not None:
                divergence = torch.stack([metrics["losses/approx_kl"] for metrics in epoch]).mean()
                if self.peers.sum(divergence) > self.config.target_kl:
                    break
        means = torch.stack([torch.stack(list(metrics.values())) for metrics in history]).mean(dim=0)
        result = dict(zip(history[0], self.peers.sum(means).tolist(), strict=True))
        _, error = self.peers.moments(returns - segment.values)
        _, deviation = self.peers.moments(returns)
        explained = 1 - error.square() / deviation.square().clamp_min(1e-8)
        result["losses/explained_variance"] = explained.item()
        if self.config.anneal:
            result["charts/learning_rate"] = rate
        self.steps += total * segment.rewards.shape[1]
        return result

    def advantages(self, segment: Segment) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """Return the segment's advantages, normalised over all of it if so configured, and its returns."""
        advantages, returns = generalized_advantage(
            segment.rewards,
            segment.values,
            segment.last_values,
            segment.bootstrap_values,
            segment.terminated,
            segment.truncated,
            self.config.gamma,
            self.config.gae_lambda,
        )
        if self.config.normalize_advantage:
            mean, deviation = self.peers.moments(advantages)
            advantages = (advantages - mean) / (deviation + 1e-8).clamp_min(self.config.least_deviation)
        return advantages, returns

    def minibatches(self, num_rows: int) -> Iterator[Int[Tensor, "rows"]]:
        """Yield the row indices of each minibatch of one pass, drawn from the learner's own generator.

        Raises ValueError if there are fewer rows than minibatches.
        """
        if num_rows < self.config.num_minibatches:
            raise ValueError(
                f"num_minibatches={self.config.num_minibatches} is more than the {num_rows} rows of the "
                "batch; use more environments or fewer minibatches"
            )
        order = torch.randperm(num_rows, generator=self.generator)
        yield from order.tensor_split(self.config.num_minibatches)

    def loss(
        self, segment: Segment, advantages: Float[Tensor, "batch time"], returns: Float[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss of some rows under the current weights, and its parts as detached scalars."""
        config = self.config
        evaluation = self.policy.evaluate(segment)
        log_ratio = evaluation.log_probs - segment.log_probs
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        value_loss = 0.5 * (evaluation.values - returns).square().mean()
        entropy = evaluation.entropy.mean()
        loss = policy_loss + config.value_coefficient * value_loss - config.entropy_coefficient * entropy
        if config.barrier_coefficient > 0:
            assert isinstance(evaluation.distribution, Categorical)
            loss = loss + config.barrier_coefficient * evaluation.distribution.barrier().mean()
        if config.reconstruction_coefficient > 0:
            loss = loss + config.reconstruction_coefficient * evaluation.reconstruction_loss
        for auxiliary in evaluation.auxiliary_losses.values():
            loss = loss + config.auxiliary_coefficient * auxiliary
        with torch.no_grad():
            metrics = {
                "losses/policy_loss": policy_loss.detach(),
                "losses/value_loss": value_loss.detach(),
                "losses/entropy": entropy.detach(),
                "losses/reconstruction_loss": evaluation.reconstruction_loss.detach(),
                **{f"losses/{k}_loss": v.detach() for k, v in evaluation.auxiliary_losses.items()},
                # Schulman's estimator of KL(old || new): never negative and of low variance.
                "losses/approx_kl": (log_ratio.expm1() - log_ratio).mean(),
                "losses/clipfrac": ((ratio - 1).abs() > config.clip).to(ratio.dtype).mean(),
            }
        return loss, metrics

    def descend(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Take one gradient step down the loss and return the gradient's norm before it was shortened."""
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        self.peers.sum_gradients(self._parameters)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        take_step(self.optimizer)
        return norm.detach()

    def get_state(self) -> dict[str, Any]:
        """Return what the learner knows besides the policy's weights, as tensors and plain values."""
        # Copied, since the optimizer hands out the very tensors that its next step overwrites.
        return {
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            **({"steps": self.steps} if self.config.anneal else {}),
            **({"reward_scale": self._scale.get_state()} if self._scale is not None else {}),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned."""
        restore(self.optimizer, state["optimizer"])
        self.generator.set_state(state["generator"])
        steps = state.get("steps", 0)
        if type(steps) is not int or steps < 0:
            raise ValueError(f"steps={steps!r:.40} of the learner: expected a number of steps")
        self.steps = steps
        if self._scale is not None:
            self._scale.set_state(state.get("reward_scale"))

    def _set_learning_rate(self) -> float:
        """Set the rate of the next update, and return it; once it has fallen the last one stays."""
        group = self.optimizer.param_groups[0]
        if self.config.anneal_steps is not None and self.steps < self.config.anneal_steps:
            group["lr"] = self.config.learning_rate * (1 - self.steps / self.config.anneal_steps)
        return group["lr"]

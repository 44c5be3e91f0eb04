"""Proximal policy optimization (PPO) with backpropagation through time truncated at segment boundaries."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.agents.rl.advantages import RewardScale, generalized_advantage
from scrubjay.agents.rl.auxiliary import HEADS
from scrubjay.agents.rl.composite import Composite, is_discrete
from scrubjay.agents.rl.distributions import Categorical
from scrubjay.agents.rl.learner import (
    SingleProcess,
    adam,
    gradient_step,
    load_optimizer_state,
    minibatches,
)
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.schedules import ScheduleConfig, load_steps
from scrubjay.agents.rl.segment import EarlierSteps, Segment


@dataclass(frozen=True)
class PPOConfig(ScheduleConfig):
    """Config of `PPO`.

    Raises:
        ValueError: On an invalid value.
    """

    supports_peers: ClassVar[bool] = True
    updates_statistics: ClassVar[bool] = True
    min_rows_field: ClassVar[str | None] = "num_minibatches"

    learning_rate: float = 1e-3
    """Learning rate of Adam. The default is for networks of width 64; wider ones need a lower rate."""
    gamma: float = 0.99
    """Discount factor; use 1 only if every episode terminates."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation: bias-variance trade-off between the critic (0) and returns
    (1)."""
    clip: float = 0.2
    """Clip range: policy ratios are clipped to [1 - clip, 1 + clip]."""
    epochs: int = 4
    """Epochs over each batch."""
    num_minibatches: int = 4
    """Number of minibatches per epoch; a minibatch has the whole segments of some environments."""
    entropy_coefficient: float = 0.01
    """Coefficient of the entropy bonus."""
    barrier_coefficient: float = 0.0
    """Coefficient of the log barrier KL(uniform, policy), which keeps every action possible; discrete actions
    only."""
    value_coefficient: float = 0.5
    """Coefficient of the value loss."""
    reconstruction_coefficient: float = 0.0
    """Coefficient of the reconstruction loss; above 0 requires a policy with `reconstruction=True`."""
    auxiliary_coefficient: float = 0.0
    """Coefficient of the auxiliary losses; above 0 requires a policy with `auxiliary=(...)`."""
    max_grad_norm: float = 0.5
    """Maximum norm for gradient clipping."""
    normalize_advantage: bool = True
    """Normalize advantages over the whole batch to mean 0 and standard deviation 1."""
    least_deviation: float = 0.1
    """Minimum of the standard deviation by which `normalize_advantage` divides, as a fraction of the running
    root mean square of returns; 0 for no minimum. A minimum avoids the amplification of small advantages,
    which are mostly noise once the task is learned."""
    scale_rewards: bool = True
    """Divide rewards by the running root mean square of returns. Values and the value loss then refer to the
    scaled rewards."""
    target_kl: float | None = None
    """Mean KL divergence from the sampling policy, in nats, above which the remaining epochs of an update are
    skipped; None for no limit."""
    anneal: bool = False
    """Decay the learning rate linearly to 0."""
    burn_in_segments: int = 0
    """Segments before each segment that are replayed under the current weights before each epoch, without
    gradients. The memory state at the start of the segment is then that of the current weights, if the
    episode began in these segments. Before the first epoch, the probabilities of the actions and the values
    are computed again from this state. 0 uses the state from sampling time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1 or not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gamma={self.gamma}, gae_lambda={self.gae_lambda}: both must lie in [0, 1]")
        if self.epochs < 1 or self.num_minibatches < 1:
            raise ValueError(
                f"epochs={self.epochs}, num_minibatches={self.num_minibatches}: both must be at least 1"
            )
        weights = ("entropy", "barrier", "value", "reconstruction", "auxiliary")
        for name in (*(f"{weight}_coefficient" for weight in weights), "least_deviation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be finite and not negative")
        if self.burn_in_segments < 0:
            raise ValueError(f"burn_in_segments={self.burn_in_segments}: must not be negative")
        has_minimum = self.least_deviation not in (0, PPOConfig.least_deviation)
        if has_minimum and not self.normalize_advantage:
            raise ValueError(f"least_deviation={self.least_deviation}: requires normalize_advantage=True")
        if self.target_kl is not None and not self.target_kl > 0:
            raise ValueError(f"target_kl={self.target_kl}: must be positive, or None for no limit")
        if not (0 < self.learning_rate < math.inf and self.clip > 0 and self.max_grad_norm > 0):
            raise ValueError(
                f"learning_rate={self.learning_rate}, clip={self.clip}, max_grad_norm={self.max_grad_norm}: "
                "all must be positive, and the learning rate finite"
            )

    @property
    def sampled_burn_in(self) -> int:
        """Number of earlier segments whose steps `update` needs with each segment."""
        return self.burn_in_segments

    @property
    def has_schedule(self) -> bool:
        """True if a setting changes during the run."""
        return self.anneal or super().has_schedule

    @property
    def schedule_fields(self) -> str:
        """Settings that turn on a schedule, for errors."""
        return f"anneal=True, {super().schedule_fields}"

    def build(self, policy: Policy, seed: int = 0, peers: SingleProcess | None = None) -> PPO:
        """Return a PPO learner of `policy`.

        Raises:
            ValueError: If the policy lacks a head that the config requires, or if there is a schedule without
                `anneal_steps`; see `with_total_steps`.
        """
        return PPO(policy, self, seed, peers)


class PPO:
    """Proximal policy optimization of a policy on its own segments.

    Implements equations 7 and 9 of Schulman et al. 2017 (arXiv 1707.06347), without clipping of the value
    loss. The optional log barrier is from Agarwal et al. 2021 (arXiv 1908.00261). As the probability of an
    action goes to 0, the gradient of the entropy vanishes, but the gradient of the barrier does not. Each
    segment starts from its stored memory state, through which no gradient flows, or with `burn_in_segments`
    from a state that is computed again before each epoch (Kapturowski et al. 2019, R2D2, section 3). A
    minibatch has the whole segments of some environments.

    With `peers`, learners in several processes compute one update together. Each learner has a part of the
    batch, and all learners have the same seed. Minibatches, gradients and the normalization of advantages
    cover the whole batch, so the update is the same as with a single learner. There is one exception:
    each learner averages the auxiliary losses that predict later observations over its own part of the batch.

    Args:
        policy: Policy to train.
        config: Settings; the defaults without one.
        seed: Seed of the order of the minibatches.
        peers: Learners in other processes; None for a single learner.

    Raises:
        ValueError: If the policy lacks a head that the config requires, or a schedule lacks `anneal_steps`.
    """

    def __init__(
        self,
        policy: Policy,
        config: PPOConfig | None = None,
        seed: int = 0,
        peers: SingleProcess | None = None,
    ) -> None:
        self.policy = policy
        self.peers = peers if peers is not None else SingleProcess()
        self.config = config if config is not None else PPOConfig()
        if self.config.reconstruction_coefficient > 0 and policy.reconstruction is None:
            raise ValueError(
                f"reconstruction_coefficient={self.config.reconstruction_coefficient} needs a policy built "
                "with PolicyConfig(reconstruction=True)"
            )
        if self.config.auxiliary_coefficient > 0 and not policy.auxiliary:
            raise ValueError(
                f"auxiliary_coefficient={self.config.auxiliary_coefficient} needs a policy built with "
                f"PolicyConfig(auxiliary=(...)); choose from {', '.join(HEADS)}"
            )
        if self.config.barrier_coefficient > 0 and not is_discrete(policy.actor):
            raise ValueError(
                f"barrier_coefficient={self.config.barrier_coefficient} needs a discrete action space, not "
                f"{policy.action_space}"
            )
        self.config.check_anneal_steps()
        self.steps = 0
        """Environment steps in all updates so far."""
        self.optimizer = adam(policy.parameters(), self.config.learning_rate)
        self.generator = torch.Generator().manual_seed(seed)
        has_unit = self.config.scale_rewards or self.config.least_deviation > 0
        self._scale = RewardScale(self.config.gamma, self.peers) if has_unit else None
        self._unit = 1.0  # root mean square of the returns that the advantages are computed from

    def update(self, segment: Segment) -> dict[str, float]:
        """Take up to `epochs * num_minibatches` gradient steps; return metrics, averaged over the steps.

        Raises:
            ValueError: If the batch has fewer environments than minibatches, a reward is not finite, or the
                segment lacks the steps for `burn_in_segments`.
        """
        segment.check_rewards()
        burn_in = segment.burn_in if self.config.burn_in_segments else None
        segment = dataclasses.replace(segment, burn_in=None)  # minibatches need no copies of it
        if self.config.burn_in_segments and burn_in is None:
            raise ValueError(
                f"burn_in_segments={self.config.burn_in_segments}: the segment has no earlier steps; pass "
                "burn_in_segments to its Sampler, too"
            )
        if self._scale is not None and self.config.scale_rewards:
            segment = self._scale(segment)
        elif self._scale is not None:
            self._unit = self._scale.update(segment)
        if burn_in is not None:
            segment = self._refresh(segment, burn_in)
        advantages, returns = self.advantages(segment)
        first, total = self.peers.locate_rows(segment.num_rows)
        config, rate = self.config, self._set_learning_rate()
        config.check_rows(total)
        history: list[dict[str, Tensor]] = []
        for number in range(config.epochs):
            epoch = []
            if burn_in is not None and number:  # `_refresh` did it for the first epoch
                segment = dataclasses.replace(segment, state=self.policy.replay(burn_in))
            for index in minibatches(total, 1, config.num_minibatches, self.generator):
                own = index[(index >= first) & (index < first + segment.num_rows)] - first
                share = len(own) / len(index)
                if not len(own):  # takes part in the reductions with a row of weight 0
                    own = index.new_zeros(1)
                own = own.to(segment.rewards.device)
                loss, metrics = self.loss(segment.rows(own), advantages[own], returns[own])
                if share < 1:
                    loss = loss * share
                norm = gradient_step(self.optimizer, loss, config.max_grad_norm, self.peers)
                metrics["losses/grad_norm"] = norm
                if share < 1:
                    metrics = {name: value * share for name, value in metrics.items()}
                epoch.append(metrics)
            history += epoch
            if config.target_kl is not None:
                divergence = torch.stack([metrics["losses/approx_kl"] for metrics in epoch]).mean()
                if self.peers.sum(divergence) > config.target_kl:
                    break
        means = torch.stack([torch.stack(list(metrics.values())) for metrics in history]).mean(dim=0)
        result = dict(zip(history[0], self.peers.sum(means).tolist(), strict=True))
        _, error = self.peers.moments(returns - segment.values)
        _, deviation = self.peers.moments(returns)
        explained_variance = 1 - error.square() / deviation.square().clamp_min(1e-8)
        result["losses/explained_variance"] = explained_variance.item()
        if config.anneal:
            result["charts/learning_rate"] = rate
        result |= config.schedule_metrics(self.steps)
        self.steps += total * segment.rewards.shape[1]
        # Not earlier: the segment was sampled with the statistics before it, and the ratios start at 1.
        self.policy.update_statistics(segment, self.peers)
        return result

    @torch.no_grad()
    def _refresh(self, segment: Segment, burn_in: EarlierSteps) -> Segment:
        """Return `segment` with memory states, probabilities of actions and values of the current weights.

        With the probabilities from sampling time, ratios would not start at 1: the policy sampled from
        another memory state. Updates would then be large although the weights are the same.
        """
        segment = dataclasses.replace(segment, state=self.policy.replay(burn_in))
        rows = torch.arange(segment.num_rows, device=segment.rewards.device)
        size = -(-len(rows) // self.config.num_minibatches)
        parts = [self.policy.evaluate(segment.rows(index)) for index in rows.split(size)]
        return dataclasses.replace(
            segment,
            log_probs=torch.cat([part.log_probs for part in parts]),
            values=torch.cat([part.values for part in parts]),
        )

    def advantages(self, segment: Segment) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """Return the segment's advantages, normalized if configured, and its returns."""
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
            least_deviation = self.config.least_deviation * self._unit
            advantages = (advantages - mean) / (deviation + 1e-8).clamp_min(least_deviation)
        return advantages, returns

    def loss(
        self, segment: Segment, advantages: Float[Tensor, "batch time"], returns: Float[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss of a minibatch under the current weights, and its terms as detached metrics.

        Args:
            segment: Minibatch: whole segments of some environments.
            advantages: Advantage of each step.
            returns: Target of the critic at each step.
        """
        config = self.config.at(self.steps)
        evaluation = self.policy.evaluate(segment)
        log_ratio = evaluation.log_probs - segment.log_probs
        ratio = log_ratio.exp()
        clipped_ratio = ratio.clamp(1 - config.clip, 1 + config.clip)
        policy_loss = -torch.minimum(ratio * advantages, clipped_ratio * advantages).mean()
        value_loss = 0.5 * (evaluation.values - returns).square().mean()
        entropy = evaluation.entropy.mean()
        loss = policy_loss + config.value_coefficient * value_loss - config.entropy_coefficient * entropy
        if config.barrier_coefficient > 0:
            assert isinstance(evaluation.distribution, (Categorical, Composite))
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
                # Schulman's estimator of KL(old || new): non-negative, with low variance.
                "losses/approx_kl": (log_ratio.expm1() - log_ratio).mean(),
                "losses/clipfrac": ((ratio - 1).abs() > config.clip).to(ratio.dtype).mean(),
            }
        return loss, metrics

    def get_state(self) -> dict[str, Any]:
        """Return the states of optimizer, generator and counters, without the policy's weights."""
        # Copied, since the next step overwrites the optimizer's tensors in place.
        return {
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            **({"steps": self.steps} if self.config.has_schedule else {}),
            **({"reward_scale": self._scale.get_state()} if self._scale is not None else {}),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` returned."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.generator.set_state(state["generator"])
        self.steps = load_steps(state)
        # Until version 0.3 there were statistics only with scaled rewards.
        if self._scale is not None and (self.config.scale_rewards or "reward_scale" in state):
            self._scale.set_state(state.get("reward_scale"))

    def _set_learning_rate(self) -> float:
        """Set and return the learning rate of the next update; it is constant after `anneal_steps`."""
        group = self.optimizer.param_groups[0]
        steps, total = self.steps, self.config.anneal_steps
        if self.config.anneal and total is not None and steps < total:
            group["lr"] = self.config.learning_rate * (1 - steps / total)
        return group["lr"]

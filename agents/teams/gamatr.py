"""GA-MATR: multi-agent trust-region learning of teams with graph attention.

Feng, Wu, Huang and Yuen 2024 (arXiv 2401.17880) train base stations on UAVs with a graph recurrent network,
an attention critic, and a multi-agent trust region with monotonic convergence to an estimated Nash
equilibrium of a Markov game. Only the abstract and summaries were available to us. We did not have the
equations, networks and parameters, so nothing here reproduces the paper's numbers. Our own choices:

- Every agent has its own advantage, from its own reward and value, since the game of the paper mixes
  cooperation and competition. With `advantage="team"` all agents maximize the mean advantage of the living
  agents instead.
- We do not know the trust-region method of the paper. `mode` therefore selects one of the published methods:
  `independent` (TRPO per agent), `sequential` (HATRPO, with monotonic improvement for shared rewards),
  `consensus` (MATRPO) or `metagame` (MATRL, for general-sum games). Two more modes are clipped baselines:
  `clip` (MAPPO) and `clip_sequential` (HAPPO).
- In a team of N agents, `sequential` costs N times as much with one shared actor as with separate actors,
  since every step of a shared actor changes the policies of all agents. For large teams with a shared actor,
  `independent` takes one step within the divergence limits of all agents.
- The KL divergence is exact, and every agent has a divergence limit. `kl_budget` makes the limits equal or
  allocates them to the agents.
- Actors receive features of their neighbors through the graph attention of `TeamPolicy`. The critic is fitted
  after the actors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from scrubjay.agents.rl.learner import (
    SingleProcess,
    adam,
    gradient_step,
    load_optimizer_state,
    minibatches,
)
from scrubjay.agents.rl.schedules import ScheduleConfig, load_steps
from scrubjay.agents.rl.trust_region import mean_kl
from scrubjay.agents.teams.batch import TeamBatch, normalize_advantages, team_advantages
from scrubjay.agents.teams.config import GAMATRSettings
from scrubjay.agents.teams.consensus import consensus_steps
from scrubjay.agents.teams.metagame import metagame_steps
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.segment import TeamSegment
from scrubjay.agents.teams.steps import (
    ModeContext,
    ModeResult,
    clipped_sequence,
    clipped_steps,
    compute_detached,
    independent_steps,
    sequential_steps,
)


@dataclass(frozen=True)
class Mode:
    """Update mode of a team's actors, with its requirements."""

    move: Callable[[ModeContext], ModeResult]
    """Function that updates the policy's actors. If `uses_optimizer` is True, the function returns no
    trust-region steps."""
    needs_joint: bool = False
    """True if each actor must model the actions of all agents."""
    supports_shared: bool = True
    """True if one actor can be shared by all agents."""
    supports_subset: bool = False
    """True if a subset of the agents can be updated."""
    supports_budgets: bool = False
    """True if each agent can have its own divergence limit."""
    supports_entropy: bool = True
    """True if the mode has an entropy bonus."""
    uses_optimizer: bool = False
    """True if the mode takes gradient steps with an optimizer instead of trust-region steps."""


MODES: dict[str, Mode] = {
    "sequential": Mode(sequential_steps, supports_budgets=True),
    "independent": Mode(independent_steps, supports_subset=True, supports_budgets=True),
    "consensus": Mode(consensus_steps, needs_joint=True, supports_entropy=False),
    "metagame": Mode(metagame_steps, supports_shared=False, supports_budgets=True),
    "clip": Mode(clipped_steps, uses_optimizer=True),
    "clip_sequential": Mode(clipped_sequence, uses_optimizer=True),
}
"""Modes by name. Each name is also the name of a learner, see `scrubjay.agents.list_learners`."""


@dataclass(frozen=True)
class GAMATRConfig(GAMATRSettings, ScheduleConfig):
    """Config of `GAMATR`, including its trust regions.

    Raises:
        ValueError: On an invalid value.
    """

    policy_type: ClassVar[str] = "team"
    updates_statistics: ClassVar[bool] = True
    min_rows_field: ClassVar[str | None] = "minibatches"

    def __post_init__(self) -> None:
        super().__post_init__()
        ScheduleConfig.__post_init__(self)
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r}: choose from {', '.join(MODES)}")
        if self.clip_end is not None and not self.rule.uses_optimizer:
            able = ", ".join(name for name, rule in MODES.items() if rule.uses_optimizer)
            raise ValueError(
                f"clip_end={self.clip_end}: mode={self.mode!r} has no clip range; use one of the modes {able}"
            )
        if self.kl_budget == "allocated" and not self.rule.supports_budgets:
            able = ", ".join(name for name, rule in MODES.items() if rule.supports_budgets)
            raise ValueError(
                f"kl_budget='allocated' is not supported by mode={self.mode!r}; use one of the modes {able}, "
                "or kl_budget='equal'"
            )
        if (self.entropy_coefficient or self.entropy_end is not None) and not self.rule.supports_entropy:
            raise ValueError(
                f"entropy_coefficient={self.entropy_coefficient}, entropy_end={self.entropy_end}: "
                f"mode={self.mode!r} has no entropy bonus; use 0 and None"
            )

    @property
    def rule(self) -> Mode:
        """Update rule of the actors, selected by `mode`."""
        return MODES[self.mode]

    def build(
        self,
        policy: TeamPolicy,
        seed: int = 0,
        peers: SingleProcess | None = None,
        agents: Sequence[int] | None = None,
    ) -> GAMATR:
        """Return a GAMATR learner that trains `policy`; `peers` is ignored.

        If `agents` is set, only the actors of these agents are updated.

        Raises:
            ValueError: If the mode does not support the policy's actors.
        """
        return GAMATR(policy, self, seed, agents)


class GAMATR:
    """Multi-agent trust-region learner of a team's policy on its own segments.

    With `normalize_values` the critic predicts normalized values; `value_mean` and `value_deviation` convert
    these values to the unit of rewards.

    Args:
        policy: Policy of the team to train.
        config: Settings; the defaults without one.
        seed: Seed of the learner's random numbers.
        agents: Agents whose actors are updated; None for all. Some agents require the mode `independent` and
            separate actors.

    Raises:
        ValueError: If the mode does not support the policy's actors.
    """

    def __init__(
        self,
        policy: TeamPolicy,
        config: GAMATRConfig | None = None,
        seed: int = 0,
        agents: Sequence[int] | None = None,
    ) -> None:
        self.policy = policy
        self.config = config if config is not None else GAMATRConfig()
        _check_actors(policy, self.config)
        self.config.check_anneal_steps()
        if agents is not None and (not self.config.rule.supports_subset or policy.config.shared):
            raise ValueError(
                f"agents={agents}: updating some agents requires mode='independent' and shared=False"
            )
        self.steps = 0
        """Environment steps in all updates so far."""
        self.agents = range(policy.num_agents) if agents is None else agents
        self._updates_statistics = agents is None  # else the fixed actors would change
        self.critic_optimizer = adam(policy.critic_parameters(), self.config.critic_learning_rate)
        self.actor_optimizer = (
            adam(policy.actor_parameters(), self.config.learning_rate)
            if self.config.rule.uses_optimizer
            else None
        )
        self.generator = torch.Generator().manual_seed(seed)
        self._moments = torch.zeros(3, dtype=torch.float64)  # weight, mean and mean square of returns

    @property
    def value_mean(self) -> float:
        """Value, in the unit of rewards, for a critic output of 0."""
        weight, mean, _ = self._moments.tolist()
        return mean / weight if weight else 0.0

    @property
    def value_deviation(self) -> float:
        """Change of the value, in the unit of rewards, per unit of the critic's output."""
        weight, _, square = self._moments.tolist()
        return max(square / weight - self.value_mean**2, 1e-4) ** 0.5 if weight else 1.0

    def update(self, segment: TeamSegment) -> dict[str, float]:
        """Update the actors, then fit the critic; return metrics.

        Raises:
            ValueError: If the batch has fewer environments than minibatches or a reward is not finite.
        """
        segment.check_rewards()
        self.config.check_rows(segment.num_rows)
        batch, returns, metrics = self._prepare(segment)
        metrics |= self._move_actors(batch)
        metrics |= self._fit_critic(batch, returns) | self.config.schedule_metrics(self.steps)
        self.steps += segment.num_steps
        if self._updates_statistics:  # not earlier: the segment was sampled with the statistics before it
            self.policy.update_statistics(segment)
        return metrics

    def batch(self, segment: TeamSegment) -> TeamBatch:
        """Return the training batch of the actors for a segment, without an update."""
        return self._prepare(segment)[0]

    def _prepare(self, segment: TeamSegment) -> tuple[TeamBatch, Tensor, dict[str, float]]:
        config = self.config
        segment = copy.copy(segment)
        for name in ("values", "bootstrap_values", "last_values"):
            values = getattr(segment, name) * self.value_deviation + self.value_mean
            setattr(segment, name, values)
        weights = segment.alive.to(segment.rewards.dtype)
        advantages, returns = team_advantages(segment, config.gamma, config.gae_lambda)
        unexplained_share = _variance(advantages, weights) / max(_variance(returns, weights), 1e-8)
        if config.advantage == "team":
            living = weights.sum(dim=2, keepdim=True).clamp_min(1)
            advantages = (advantages.sum(dim=2, keepdim=True) / living) * weights
        if config.normalize_advantage:
            advantages = normalize_advantages(advantages, weights)
        log_probs = segment.log_probs.masked_fill(~segment.alive, 0)
        batch = TeamBatch(segment, advantages, weights, log_probs)
        return batch, returns, {"losses/explained_variance": 1 - unexplained_share}

    def _move_actors(self, batch: TeamBatch) -> dict[str, float]:
        policy, rule = self.policy, self.config.rule
        distribution = partial(policy.distribution, batch.segment)
        old = compute_detached(distribution) if rule.uses_optimizer else None
        config = self.config.at(self.steps)
        context = ModeContext(policy, batch, config, self.agents, self.generator, self.actor_optimizer)
        steps, metrics = rule.move(context)
        new = compute_detached(distribution)
        if old is not None:
            kl = mean_kl(old, new, batch.weights)
        else:  # the last step of a shared actor has the divergences of all agents
            kl = steps[-1].kl if policy.config.shared else torch.stack([step.kl for step in steps])
        metrics |= {
            "losses/kl": kl.mean().item(),
            "losses/kl_max": kl.max().item(),
            "losses/entropy": batch.mean(new.entropy()).item(),
            "losses/improvement": batch.mean((batch.log_ratio(new).exp() - 1) * batch.advantages).item(),
        }
        if steps:
            count = len(steps)
            metrics |= {
                "losses/accepted": sum(step.is_accepted for step in steps) / count,
                "losses/backtracks": sum(step.backtracks for step in steps) / count,
                "losses/cg_residual": sum(step.residual for step in steps) / count,
            }
        return metrics

    def _fit_critic(self, batch: TeamBatch, returns: Float[Tensor, "batch time agents"]) -> dict[str, float]:
        config, policy = self.config, self.policy
        if config.normalize_values:
            self._update_moments(returns, batch.weights)
        targets = (returns - self.value_mean) / self.value_deviation
        losses = []
        for index in minibatches(
            batch.segment.num_rows, config.critic_epochs, config.minibatches, self.generator
        ):
            index = index.to(returns.device)
            part = batch.rows(index)
            loss = part.mean(smooth_l1_loss(policy.values(part.segment), targets[index], reduction="none"))
            gradient_step(self.critic_optimizer, loss, config.max_grad_norm)
            losses.append(loss.detach())
        return {"losses/value_loss": torch.stack(losses).mean().item()}

    def _update_moments(self, returns: Tensor, weights: Tensor) -> None:
        """Update the running mean and the running mean square of returns; this batch has weight 0.1.

        Both averages start at 0. To correct for this, `value_mean` and `value_deviation` divide by the total
        weight of all batches.
        """
        count = float(weights.sum())
        if count > 0:
            mean = float((returns * weights).sum()) / count
            square = float((returns.square() * weights).sum()) / count
            moments = torch.tensor([1.0, mean, square], dtype=torch.float64)
            self._moments.lerp_(moments, 0.1)

    def get_state(self) -> dict[str, Any]:
        """Return the states of optimizers, generator and value moments, without the policy's weights."""
        # Copied, since the next step overwrites the optimizers' tensors in place.
        return {
            "critic_optimizer": copy.deepcopy(self.critic_optimizer.state_dict()),
            "actor_optimizer": copy.deepcopy(self.actor_optimizer.state_dict())
            if self.actor_optimizer
            else None,
            "generator": self.generator.get_state(),
            "value_moments": self._moments.clone(),
            **({"steps": self.steps} if self.config.has_schedule else {}),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` returned."""
        load_optimizer_state(self.critic_optimizer, state["critic_optimizer"])
        if self.actor_optimizer is not None:
            load_optimizer_state(self.actor_optimizer, state["actor_optimizer"])
        self.generator.set_state(state["generator"])
        self._moments = state["value_moments"].clone()
        self.steps = load_steps(state)


def _variance(values: Tensor, weights: Tensor) -> float:
    count = weights.sum().clamp_min(1)
    mean = (values * weights).sum() / count
    return float(((values - mean).square() * weights).sum() / count)


def _check_actors(policy: TeamPolicy, config: GAMATRConfig) -> None:
    actors, rule = policy.config, config.rule
    if rule.needs_joint and not actors.joint:
        raise ValueError(
            f"mode={config.mode!r} requires actors that model the actions of all agents; use "
            "TeamPolicyConfig(shared=False, joint=True)"
        )
    if actors.joint and not rule.needs_joint:
        raise ValueError(
            f"mode={config.mode!r} does not support joint=True; use joint=False or mode='consensus'"
        )
    if actors.shared and not rule.supports_shared:
        raise ValueError(f"mode={config.mode!r} requires a separate actor for each agent; set shared=False")
    if actors.shared and config.kl_budget == "allocated":
        raise ValueError("kl_budget='allocated' requires a separate actor for each agent; set shared=False")

"""GA-MATR-style learning: graph-attention teams whose actors move inside trust regions.

Feng, Wu, Huang and Yuen 2024 (arXiv 2401.17880) teach base stations on UAVs with a graph recurrent network, a
critic that weighs what it is told by attention, and a multi-agent trust region with monotonic convergence to
an estimated Nash equilibrium of a Markov game. That much the abstract and summaries say; the equations,
networks and parameters were not to be had, so nothing here reproduces the paper's numbers. What is ours to
answer for:

- Every agent has its own advantage, from its own reward and value, since the game is said to mix cooperation
  and competition; `advantage="team"` lets all improve the mean of the living instead.
- Which trust region the paper means is unknown, so all published ones are here behind `mode`: `independent`
  (TRPO for each), `sequential` (HATRPO, whose monotonic improvement holds for shared rewards), `consensus`
  (MATRPO), `metagame` (MATRL, made for general sums); and clipped baselines, `clip` (MAPPO),
  `clip_sequential` (HAPPO).
- `sequential` costs N times as much with one shared actor as with N separate ones, since every agent's step
  moves all; large teams that share are better served by `independent`, one step within every agent's limit.
- The divergence is the exact one, its limit is kept by every agent, and budgets can be equal or allocated.
- Actors see their neighbours through `TeamPolicy`'s graph; the critic is fitted after the actors have moved.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.rl.optimizers import adam, restore
from scrubjay.agents.rl.peers import Alone
from scrubjay.agents.rl.trust_region import mean_kl
from scrubjay.agents.teams.batch import TeamBatch, normalized, team_advantages
from scrubjay.agents.teams.config import GAMATRSettings
from scrubjay.agents.teams.modes import MODES, Means, Mode
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.segment import TeamSegment
from scrubjay.agents.teams.steps import frozen


@dataclass(frozen=True)
class GAMATRConfig(GAMATRSettings, LearnerConfig):
    """Settings of `GAMATR`, those of its trust regions included. Raises ValueError on an impossible one."""

    acts: ClassVar[str] = "team"
    rows_by: ClassVar[str | None] = "minibatches"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r}: choose from {', '.join(MODES)}")
        if self.kl_budget == "allocated" and not self.rule.budgets:
            able = ", ".join(name for name, rule in MODES.items() if rule.budgets)
            raise ValueError(
                f"kl_budget='allocated' needs steps that can be told how long to be; mode={self.mode!r} "
                f"cannot: use one of {able}, or kl_budget='equal'"
            )
        if self.entropy_coefficient and not self.rule.bonus:
            raise ValueError(
                f"entropy_coefficient={self.entropy_coefficient}: mode={self.mode!r} has no place for a "
                "bonus; use 0"
            )

    @property
    def rule(self) -> Mode:
        """What the mode is."""
        return MODES[self.mode]

    def build(
        self,
        policy: TeamPolicy,
        seed: int = 0,
        peers: Alone | None = None,
        agents: Sequence[int] | None = None,
    ) -> GAMATR:
        """Return GA-MATR of `policy`, alone; raises ValueError if the actors do not fit the mode.

        With `agents` only these move.
        """
        return GAMATR(policy, self, seed, agents)


class GAMATR:
    """Improves a team's policy on the segments it sampled itself.

    With `normalize_values` the policy's critic speaks in units of the returns' running deviation, from their
    running mean; who wants values in units of reward applies `value_mean` and `value_deviation`. With
    `agents` only these move, by mode `independent` and actors of their own; the others stay as they are.
    Raises ValueError if the policy's actors do not fit the mode.
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
        if agents is not None and (not self.config.rule.alone or policy.config.shared):
            raise ValueError(f"agents={agents} alone can move only with mode='independent' and shared=False")
        self.agents = range(policy.num_agents) if agents is None else agents
        self.critic_optimizer = adam(policy.critic_parameters(), self.config.critic_learning_rate)
        self.actor_optimizer = (
            adam(policy.actor_parameters(), self.config.learning_rate) if self.config.rule.descends else None
        )
        self.generator = torch.Generator().manual_seed(seed)
        self._moments = torch.zeros(3, dtype=torch.float64)  # weight, mean and mean square of returns

    @property
    def value_mean(self) -> float:
        """What a critic's 0 means, in units of reward."""
        weight, mean, _ = self._moments.tolist()
        return mean / weight if weight else 0.0

    @property
    def value_deviation(self) -> float:
        """What a critic's 1 means above its 0, in units of reward."""
        weight, _, square = self._moments.tolist()
        return max(square / weight - self.value_mean**2, 1e-4) ** 0.5 if weight else 1.0

    def update(self, segment: TeamSegment) -> dict[str, float]:
        """Move the actors, then fit the critic; return what was measured on the way.

        Raises ValueError if the segment has fewer rows than there are minibatches.
        """
        if segment.num_rows < self.config.minibatches:
            raise ValueError(
                f"minibatches={self.config.minibatches} is more than the {segment.num_rows} rows of the "
                "batch; use more environments or fewer minibatches"
            )
        batch, returns, metrics = self._prepare(segment)
        metrics |= self._move_actors(batch)
        return metrics | self._fit_critic(batch, returns)

    def batch(self, segment: TeamSegment) -> TeamBatch:
        """Return the segment with the advantages that an update of the actors would work with."""
        return self._prepare(segment)[0]

    def _prepare(self, segment: TeamSegment) -> tuple[TeamBatch, Tensor, dict[str, float]]:
        config = self.config
        segment = copy.copy(segment)
        for name in ("values", "bootstrap_values", "last_values"):
            values = getattr(segment, name) * self.value_deviation + self.value_mean
            setattr(segment, name, values)
        weights = segment.alive.to(segment.rewards.dtype)
        advantages, returns = team_advantages(segment, config.gamma, config.gae_lambda)
        unexplained = _variance(advantages, weights) / max(_variance(returns, weights), 1e-8)
        if config.advantage == "team":
            living = weights.sum(dim=2, keepdim=True).clamp_min(1)
            advantages = (advantages.sum(dim=2, keepdim=True) / living) * weights
        if config.normalize_advantage:
            advantages = normalized(advantages, weights)
        log_probs = segment.log_probs.masked_fill(~segment.alive, 0)
        batch = TeamBatch(segment, advantages, weights, log_probs)
        return batch, returns, {"losses/explained_variance": 1 - unexplained}

    def _move_actors(self, batch: TeamBatch) -> dict[str, float]:
        policy, rule = self.policy, self.config.rule
        distribution = partial(policy.distribution, batch.segment)
        old = frozen(distribution) if rule.descends else None
        means = Means(self.agents, self.generator, self.actor_optimizer)
        steps, metrics = rule.move(policy, batch, self.config, means)
        new = frozen(distribution)
        if old is not None:
            kl = mean_kl(old, new, batch.weights)
        else:  # the last step of a shared actor knows of all
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
                "losses/accepted": sum(step.accepted for step in steps) / count,
                "losses/backtracks": sum(step.backtracks for step in steps) / count,
                "losses/cg_residual": sum(step.residual for step in steps) / count,
            }
        return metrics

    def _fit_critic(self, batch: TeamBatch, returns: Float[Tensor, "batch time agents"]) -> dict[str, float]:
        config, policy = self.config, self.policy
        if config.normalize_values:
            self._notice(returns, batch.weights)
        targets = (returns - self.value_mean) / self.value_deviation
        parameters = policy.critic_parameters()
        losses = []
        for _ in range(config.critic_epochs):
            order = torch.randperm(batch.segment.num_rows, generator=self.generator)
            for index in order.tensor_split(config.minibatches):
                index = index.to(returns.device)
                part = batch.rows(index)
                error = smooth_l1_loss(policy.values(part.segment), targets[index], reduction="none")
                loss = part.mean(error)
                self.critic_optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
                self.critic_optimizer.step()
                losses.append(loss.detach())
        return {"losses/value_loss": torch.stack(losses).mean().item()}

    def _notice(self, returns: Tensor, weights: Tensor) -> None:
        """Let the running moments move a tenth of the way to this batch's; the first batch sets them."""
        count = float(weights.sum())
        if count > 0:
            mean = float((returns * weights).sum()) / count
            square = float((returns.square() * weights).sum()) / count
            seen = torch.tensor([1.0, mean, square], dtype=torch.float64)
            self._moments.lerp_(seen, 0.1)

    def get_state(self) -> dict[str, Any]:
        """Return what the learner knows besides the policy's weights, as tensors and plain values."""
        # Copied, since optimizers hand out the very tensors that their next step overwrites.
        return {
            "critic_optimizer": copy.deepcopy(self.critic_optimizer.state_dict()),
            "actor_optimizer": copy.deepcopy(self.actor_optimizer.state_dict())
            if self.actor_optimizer
            else None,
            "generator": self.generator.get_state(),
            "value_moments": self._moments.clone(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned."""
        restore(self.critic_optimizer, state["critic_optimizer"])
        if self.actor_optimizer is not None:
            restore(self.actor_optimizer, state["actor_optimizer"])
        self.generator.set_state(state["generator"])
        self._moments = state["value_moments"].clone()


def _variance(values: Tensor, weights: Tensor) -> float:
    count = weights.sum().clamp_min(1)
    mean = (values * weights).sum() / count
    return float(((values - mean).square() * weights).sum() / count)


def _check_actors(policy: TeamPolicy, config: GAMATRConfig) -> None:
    actors, rule = policy.config, config.rule
    if rule.joint and not actors.joint:
        raise ValueError(
            f"mode={config.mode!r} compares what agents think of each other's actions; build the policy with "
            "TeamPolicyConfig(shared=False, joint=True)"
        )
    if actors.joint and not rule.joint:
        raise ValueError(
            f"mode={config.mode!r} has no use for actors that model others; set joint=False, or "
            "mode='consensus'"
        )
    if actors.shared and not rule.shared:
        raise ValueError(f"mode={config.mode!r} lets agents differ in how far they go; set shared=False")
    if actors.shared and config.kl_budget == "allocated":
        raise ValueError("kl_budget='allocated' needs an actor for each agent; set shared=False")

"""Training batch of a team's actors: segment, advantages and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.agents.rl.advantages import generalized_advantage
from scrubjay.agents.rl.distributions import Distribution
from scrubjay.agents.teams.segment import TeamSegment


@dataclass
class TeamBatch:
    """Segment with the advantages of each agent; entries of agents that are not alive have weight 0."""

    segment: TeamSegment
    advantages: Float[Tensor, "batch time agents"]
    weights: Float[Tensor, "batch time agents"]
    """1 where the agent was alive, else 0."""
    log_probs: Float[Tensor, "batch time agents"]
    """Log-probabilities of the actions at sampling time; 0 where the agent was not alive."""

    def rows(self, index: Int[Tensor, "rows"]) -> Self:
        """Return a batch of the rows that `index` selects."""
        parts = (part.index_select(0, index) for part in (self.advantages, self.weights, self.log_probs))
        return type(self)(self.segment.rows(index), *parts)

    def mean(self, values: Tensor, agent: int | None = None) -> Float[Tensor, ""]:
        """Return the mean of `values` over steps at which agents were alive; 0 without such steps.

        If `agent` is set, `values` belong to this agent only.
        """
        weights = select_agent(self.weights, agent)
        return (values * weights).sum() / weights.sum().clamp_min(1)

    def log_ratio(
        self, distribution: Distribution, agent: int | None = None
    ) -> Float[Tensor, "batch time *agents"]:
        """Return the change of actions' log-probabilities since sampling; 0 where an agent is not alive."""
        change = distribution.log_prob(select_agent(self.segment.actions, agent)) - select_agent(
            self.log_probs, agent
        )
        return change.masked_fill(select_agent(self.weights, agent) == 0, 0)

    def surrogate(
        self,
        agent: int | None = None,
        factor: Float[Tensor, "batch time"] | None = None,
        entropy_coefficient: float = 0.0,
    ) -> Callable[[Distribution], Float[Tensor, ""]]:
        """Return the surrogate objective of a trust-region step, as a function of the distribution.

        The objective is the mean of policy ratio times advantage, plus an entropy bonus. The mean is over all
        agents, or over `agent` only. `factor` multiplies the advantages.
        """
        advantages = select_agent(self.advantages, agent)
        if factor is not None:
            advantages = advantages * factor

        def improve(distribution: Distribution) -> Tensor:
            value = self.mean(self.log_ratio(distribution, agent).exp() * advantages, agent)
            if entropy_coefficient > 0:
                value = value + entropy_coefficient * self.mean(distribution.entropy(), agent)
            return value

        return improve


def select_agent(values: Tensor, agent: int | None) -> Tensor:
    """Return the entries of `agent` in `values`, `[batch, time, agents, ...]`.

    If `agent` is None, all entries are returned.
    """
    return values if agent is None else values[:, :, agent]


def team_advantages(
    segment: TeamSegment, gamma: float, gae_lambda: float
) -> tuple[Float[Tensor, "batch time agents"], Float[Tensor, "batch time agents"]]:
    """Compute generalized advantages and returns of each agent; both are 0 where the agent was not alive.

    `terminated` ends the episode of one agent. `truncated` ends the episode of the whole team.
    """

    def columns(values: Tensor) -> Tensor:
        return values.masked_fill(~segment.alive, 0).transpose(1, 2).flatten(0, 1)

    agents = segment.num_agents
    results = generalized_advantage(
        columns(segment.rewards),
        columns(segment.values),
        segment.last_values.flatten(),
        columns(segment.bootstrap_values),
        columns(segment.terminated),
        segment.truncated.repeat_interleave(agents, dim=0),
        gamma,
        gae_lambda,
    )
    advantages, returns = (
        part.unflatten(0, (-1, agents)).transpose(1, 2).masked_fill(~segment.alive, 0) for part in results
    )
    return advantages, returns


def normalize_advantages(
    values: Float[Tensor, "batch time agents"], weights: Float[Tensor, "batch time agents"]
) -> Float[Tensor, "batch time agents"]:
    """Normalize each agent's values to mean 0 and standard deviation 1 over the entries with weight 1.

    Entries with weight 0 become 0.
    """
    count = weights.sum(dim=(0, 1)).clamp_min(1)
    centered_values = (values - (values * weights).sum(dim=(0, 1)) / count) * weights
    return centered_values / ((centered_values.square().sum(dim=(0, 1)) / count).sqrt() + 1e-8)

"""What an update of a team's actors works with: experience, advantages, and who counts."""

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
    """A segment with each agent's advantages; entries of agents that are not alive weigh nothing."""

    segment: TeamSegment
    advantages: Float[Tensor, "batch time agents"]
    weights: Float[Tensor, "batch time agents"]
    """1 where the agent was alive, else 0."""
    log_probs: Float[Tensor, "batch time agents"]
    """Of the actions, when they were sampled; 0 where the agent was not alive."""

    def rows(self, index: Int[Tensor, "rows"]) -> Self:
        """Return the chosen rows."""
        parts = (part.index_select(0, index) for part in (self.advantages, self.weights, self.log_probs))
        return type(self)(self.segment.rows(index), *parts)

    def mean(self, values: Tensor, agent: int | None = None) -> Float[Tensor, ""]:
        """Return the mean over living entries, of everybody or of one agent; 0 if there is none."""
        weights = of_agent(self.weights, agent)
        return (values * weights).sum() / weights.sum().clamp_min(1)

    def log_ratio(
        self, distribution: Distribution, agent: int | None = None
    ) -> Float[Tensor, "batch time *agents"]:
        """Return by how much the actions' log-probabilities have grown since sampling; 0 where not alive."""
        change = distribution.log_prob(of_agent(self.segment.actions, agent)) - of_agent(
            self.log_probs, agent
        )
        return change.masked_fill(of_agent(self.weights, agent) == 0, 0)

    def surrogate(
        self,
        agent: int | None = None,
        factor: Float[Tensor, "batch time"] | None = None,
        entropy_coefficient: float = 0.0,
    ) -> Callable[[Distribution], Float[Tensor, ""]]:
        """Return the function of a distribution that a trust-region step improves.

        It is the mean of ratio times advantage, for everybody or for one agent; `factor` multiplies the
        advantages, the entropy is a bonus.
        """
        advantages = of_agent(self.advantages, agent)
        if factor is not None:
            advantages = advantages * factor

        def improve(distribution: Distribution) -> Tensor:
            value = self.mean(self.log_ratio(distribution, agent).exp() * advantages, agent)
            if entropy_coefficient > 0:
                value = value + entropy_coefficient * self.mean(distribution.entropy(), agent)
            return value

        return improve


def of_agent(values: Tensor, agent: int | None) -> Tensor:
    """Return one agent's part of `[batch, time, agents, ...]`, or all of it for None."""
    return values if agent is None else values[:, :, agent]


def team_advantages(
    segment: TeamSegment, gamma: float, gae_lambda: float
) -> tuple[Float[Tensor, "batch time agents"], Float[Tensor, "batch time agents"]]:
    """Return each agent's generalised advantages and returns; 0 where it was not alive.

    An agent's own `terminated` ends its episode, `truncated` that of its whole row.
    """

    def columns(values: Tensor) -> Tensor:
        return values.masked_fill(~segment.alive, 0).transpose(1, 2).flatten(0, 1)

    agents = segment.num_agents
    folded = generalized_advantage(
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
        part.unflatten(0, (-1, agents)).transpose(1, 2).masked_fill(~segment.alive, 0) for part in folded
    )
    return advantages, returns


def normalized(
    values: Float[Tensor, "batch time agents"], weights: Float[Tensor, "batch time agents"]
) -> Float[Tensor, "batch time agents"]:
    """Return the values of each agent's living entries with mean 0 and deviation 1, and 0 elsewhere."""
    count = weights.sum(dim=(0, 1)).clamp_min(1)
    centred = (values - (values * weights).sum(dim=(0, 1)) / count) * weights
    return centred / ((centred.square().sum(dim=(0, 1)) / count).sqrt() + 1e-8)

"""REINFORCE (Williams 1992) with the mean return as baseline, for one agent and for a team.

The package does not register these learners, so that tests can register them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from scrubjay.agents import LearnerConfig
from scrubjay.agents.rl.advantages import discounted_returns
from scrubjay.agents.teams.batch import team_advantages


@dataclass(frozen=True)
class ReinforceConfig(LearnerConfig):
    """Settings of `Reinforce`."""

    learning_rate: float = 3e-3
    """Adam's step size."""
    gamma: float = 0.99
    """Discount per step."""

    def build(self, policy, seed=0, peers=None):
        return Reinforce(policy, self)


class Reinforce:
    """Policy gradient learner with a mean baseline; it does not train the critic."""

    def __init__(self, policy: Any, config: ReinforceConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)

    def update(self, segment: Any) -> dict[str, float]:
        """Take one gradient step."""
        episode_ends = segment.terminated, segment.truncated
        returns = discounted_returns(segment.rewards, *episode_ends, self.config.gamma)
        return self.descend(-(self.policy.evaluate(segment).log_probs * (returns - returns.mean())).mean())

    def descend(self, loss: torch.Tensor) -> dict[str, float]:
        """Take a gradient step down the loss."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"losses/policy_loss": loss.item()}

    def get_state(self) -> dict[str, Any]:
        """Return the optimizer state."""
        return {"optimizer": self.optimizer.state_dict()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the optimizer state."""
        self.optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True)
class TeamReinforceConfig(ReinforceConfig):
    """Settings of `TeamReinforce`."""

    policy_type: ClassVar[str] = "team"

    def build(self, policy, seed=0, peers=None):
        return TeamReinforce(policy, self)


class TeamReinforce(Reinforce):
    """REINFORCE for a team, with each agent's own rewards."""

    def update(self, segment: Any) -> dict[str, float]:
        """Take one gradient step."""
        blind = dataclasses.replace(
            segment,
            values=torch.zeros_like(segment.values),
            last_values=torch.zeros_like(segment.last_values),
            bootstrap_values=torch.zeros_like(segment.bootstrap_values),
        )
        returns, _ = team_advantages(blind, self.config.gamma, 1.0)
        log_probs = self.policy.distribution(segment).log_prob(segment.actions)
        return self.descend(-(log_probs * (returns - returns.mean()) * segment.alive).mean())

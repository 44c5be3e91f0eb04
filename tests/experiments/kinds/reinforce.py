"""Learners of nobody's: REINFORCE (Williams 1992), the mean its baseline, of one agent and of a team."""

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
    """Makes likelier what was followed by more than usual; the critic is left as it was born."""

    def __init__(self, policy: Any, config: ReinforceConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)

    def update(self, segment: Any) -> dict[str, float]:
        """Take one gradient step."""
        ended = segment.terminated, segment.truncated
        returns = discounted_returns(segment.rewards, *ended, self.config.gamma)
        return self.descend(-(self.policy.evaluate(segment).log_probs * (returns - returns.mean())).mean())

    def descend(self, loss: torch.Tensor) -> dict[str, float]:
        """Take a gradient step down the loss."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"losses/policy_loss": loss.item()}

    def get_state(self) -> dict[str, Any]:
        """Return Adam's moments."""
        return {"optimizer": self.optimizer.state_dict()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        self.optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True)
class TeamReinforceConfig(ReinforceConfig):
    """The same of a team."""

    acts: ClassVar[str] = "team"

    def build(self, policy, seed=0, peers=None):
        return TeamReinforce(policy, self)


class TeamReinforce(Reinforce):
    """Every agent by its own reward."""

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

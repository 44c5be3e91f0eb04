"""A learner of nobody's: REINFORCE (Williams 1992), with the batch's mean as its baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scrubjay.agents import LearnerConfig, Policy, Segment, generalized_advantage


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
    """Makes likelier what was followed by more than usual; the critic is left as it was born, at zero."""

    def __init__(self, policy: Policy, config: ReinforceConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)

    def update(self, segment: Segment) -> dict[str, float]:
        """Take one gradient step."""
        nobody = torch.zeros_like(segment.values)
        returns, _ = generalized_advantage(
            segment.rewards,
            nobody,
            nobody[:, 0],
            nobody,
            segment.terminated,
            segment.truncated,
            self.config.gamma,
            1.0,
        )
        loss = -(self.policy.evaluate(segment).log_probs * (returns - returns.mean())).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"losses/policy_loss": loss.item()}

    def get_state(self) -> dict:
        """Return Adam's moments."""
        return {"optimizer": self.optimizer.state_dict()}

    def set_state(self, state: dict) -> None:
        """Go on from them."""
        self.optimizer.load_state_dict(state["optimizer"])

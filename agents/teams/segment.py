"""Segments of teams: fixed-length rollouts with one batch row per team."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.agents.rl.segment import BaseSegment, Observation
from scrubjay.memory import State


@dataclass
class TeamSegment(BaseSegment):
    """Rollout of `batch` teams of `agents` agents over `time` steps.

    As in `Segment`, there is no padding in time. Where an agent is not alive, `alive` is False, and the
    agent's entries in all other tensors are ignored.
    """

    observations: Observation
    """Observation of each agent before its action, `[batch, time, agents, ...]`."""
    alive: Bool[Tensor, "batch time agents"]
    """True where the agent acted."""
    actions: Tensor
    """Sampled actions, `[batch, time, agents, ...]`: zero-based indices, or real numbers before clipping to
    the bounds."""
    log_probs: Float[Tensor, "batch time agents"]
    """Log-probability of each action under the sampling policy, in nats."""
    values: Float[Tensor, "batch time agents"]
    """Value estimate of each agent at sampling time."""
    rewards: Float[Tensor, "batch time agents"]
    """Reward of each action."""
    starts: Bool[Tensor, "batch time"]
    """True where the observation is the first of the team's episode."""
    terminated: Bool[Tensor, "batch time agents"]
    """True where the action led to a terminal state of the agent."""
    truncated: Bool[Tensor, "batch time"]
    """True where the team's episode was truncated after the action, such as by a time limit."""
    bootstrap_values: Float[Tensor, "batch time agents"]
    """Value of the final observation where an episode was truncated, computed with the memory state of this
    episode; 0 elsewhere."""
    last_values: Float[Tensor, "batch agents"]
    """Value of the observation that follows the segment."""
    state: State
    """State of all memories before the first step, with the batch axis first."""

    def _acts(self) -> Tensor:
        return self.alive

    @property
    def num_steps(self) -> int:
        """Number of environment steps, over all environments; a step of a team counts once."""
        return self.starts.numel()

    @property
    def num_agents(self) -> int:
        """Number of agents."""
        return self.rewards.shape[2]

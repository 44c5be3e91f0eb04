"""A stretch of experience of several teams, dense in time: one row is a team, one column an agent."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.agents.rl.segment import Experience, Observation
from scrubjay.memory import State


@dataclass
class TeamSegment(Experience):
    """What `batch` teams of `agents` lived through in `time` steps.

    As a `Segment`, without padding in time. Agents that have left stay as columns with `alive` False, and
    nothing of theirs counts.
    """

    observations: Observation
    """What each agent saw before its action, `[batch, time, agents, ...]`."""
    alive: Bool[Tensor, "batch time agents"]
    """True where the agent was there to act."""
    actions: Tensor
    """What the policy sampled, `[batch, time, agents, ...]`: zero-based indices, or unclipped real
    numbers."""
    log_probs: Float[Tensor, "batch time agents"]
    """Log-probability of each action under the policy that took it, in nats."""
    values: Float[Tensor, "batch time agents"]
    """Value of each agent's prospects as judged while sampling."""
    rewards: Float[Tensor, "batch time agents"]
    """Reward that followed each action."""
    starts: Bool[Tensor, "batch time"]
    """True where the observation is the first of the team's episode."""
    terminated: Bool[Tensor, "batch time agents"]
    """True where the action ended the agent's own episode for good."""
    truncated: Bool[Tensor, "batch time"]
    """True where the whole team's episode was cut off after the action, as by a time limit."""
    bootstrap_values: Float[Tensor, "batch time agents"]
    """Where truncated, the value of the final observation under the state of the ended episode; else 0."""
    last_values: Float[Tensor, "batch agents"]
    """Value of the observation that follows the segment, the state carried into it."""
    state: State
    """State of all memories before the first step, batch first."""

    @property
    def num_steps(self) -> int:
        """Number of environment steps, over all rows; a step of a team is one."""
        return self.starts.numel()

    @property
    def num_agents(self) -> int:
        """Number of columns."""
        return self.rewards.shape[2]

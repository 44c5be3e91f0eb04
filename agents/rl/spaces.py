"""What a policy must know of an environment before it is built: its spaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from gymnasium.spaces import Space


@dataclass(frozen=True)
class Spaces:
    """Observation and action space of one agent, and of a team how many agents there are, all alike."""

    observation: Space
    action: Space
    num_agents: int | None = None
    """Of a team; None where one agent is alone."""

    @classmethod
    def of(cls, envs: Any) -> Self:
        """Return the spaces of rows of a gymnasium vector environment, or of a `TeamEnv`."""
        agents = getattr(envs, "possible_agents", None)
        return cls(
            envs.single_observation_space,
            envs.single_action_space,
            None if agents is None else len(agents),
        )

"""What a policy must know of an environment before it is built: its spaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from gymnasium import spaces
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

    def misfit(self, met: Spaces) -> str | None:
        """Return in words why a policy for these spaces cannot act where those are met; None if it can.

        Shapes, types and numbers of choices must be alike; bounds of numbers need not.
        """
        if self.num_agents != met.num_agents:
            return f"{self.num_agents} agents in place of {met.num_agents}"
        for what, ours, theirs in (
            ("observation", self.observation, met.observation),
            ("action", self.action, met.action),
        ):
            if _form(ours) != _form(theirs):
                return f"its {what} is {ours!s:.200} in place of {theirs!s:.200}"
        return None


def _form(space: Space) -> Any:
    """Return what a policy's layers depend on."""
    if isinstance(space, spaces.Dict):
        return {key: _form(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return [_form(part) for part in space.spaces]
    if isinstance(space, spaces.Discrete):
        return "Discrete", int(space.n), int(space.start), space.dtype
    if isinstance(space, spaces.MultiDiscrete):
        return "MultiDiscrete", space.nvec.tolist(), np.asarray(space.start).tolist(), space.dtype
    return type(space), space.shape, space.dtype

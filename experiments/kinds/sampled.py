"""What experiments share that learn from an environment: how long, from what seed, kept how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scrubjay.memory import MemoryConfig


@dataclass(frozen=True, kw_only=True)
class SampledConfig:
    """Rows of an environment are stepped by a policy; after every segment it learns."""

    acts: ClassVar[str | None]
    """Whose policy it is: "agent" or "team"."""

    env: Any
    """What to learn; it has `num_envs` rows."""
    policy: Any
    """Who learns; it has a `memory`."""
    total_steps: int = 500_000
    """Environment steps of the whole run, over all rows; rounded up to whole updates."""
    segment_length: int
    """Steps per row between updates: gradients reach this far back, the memory's state further."""
    seed: int = 0
    """Source of all randomness: weights, environments, actions, the order of what is learned from."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy computes; auto takes the GPU if there is one."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints; a killed run loses at most this much work."""
    eval_episodes: int = 100
    """Episodes played by the trained policy at the end, for result.json; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("total_steps", "segment_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("seed", "checkpoint_seconds", "eval_episodes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")

    @property
    def steps_per_update(self) -> int:
        """Environment steps in one segment over all rows."""
        return self.env.num_envs * self.segment_length

    @property
    def planned_steps(self) -> int:
        """`total_steps`, rounded up to whole updates."""
        return -(-self.total_steps // self.steps_per_update) * self.steps_per_update

    @property
    def memory(self) -> MemoryConfig:
        """The policy's memory."""
        return self.policy.memory

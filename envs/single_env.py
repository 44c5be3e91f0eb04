"""Single gymnasium environment over a vector environment of size 1; both share one implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from scrubjay.envs.batched_env import BatchedEnv, select_row
from scrubjay.envs.random_streams import restore_generator


class SingleEnv(gymnasium.Env):
    """Single environment over `batch`, a vector environment of size 1 without autoreset."""

    metadata: dict[str, Any] = BatchedEnv.metadata

    def __init__(self, batch: BatchedEnv) -> None:
        self._batch = batch
        self._seeded_from: np.random.Generator | None = None
        # A copy, because SyncVectorEnv writes its autoreset mode into its first environment's metadata.
        self.metadata = dict(type(batch).metadata)
        self.observation_space = batch.single_observation_space
        self.action_space = batch.single_action_space
        self.render_mode = batch.render_mode
        self.success_without_memory = batch.success_without_memory

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; return the first observation and info. `options` is ignored."""
        super().reset(seed=seed)
        # A new generator, from a seed or set by the user, starts a new random stream.
        if self.np_random is not self._seeded_from:
            self._seeded_from = self.np_random
            self._batch.seed_row(0, self.np_random)
        observations, infos = self._batch.reset()
        return select_row(observations, 0), _row_info(infos)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step once; return observation, reward, terminated, truncated, info.

        Raises ValueError on an action outside the action space and ResetNeeded once the episode has ended.
        """
        observations, rewards, terminated, truncated, infos = self._batch.step(np.asarray([action]))
        dones = bool(terminated[0]), bool(truncated[0])
        return select_row(observations, 0), float(rewards[0]), *dones, _row_info(infos)

    def render(self) -> Any:
        """Return an image (uint8 `[height, width, 3]`) or a text of the current step, by `render_mode`."""
        frames = self._batch.render()
        return None if frames is None else frames[0]

    def get_state(self) -> dict[str, Any]:
        """Return copies of the full state, including `np_random`, as plain data and numpy arrays."""
        return {
            "row": self._batch.get_state(),
            "np_random": self.np_random.bit_generator.state,
            "new_stream": self.np_random is not self._seeded_from,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state` exactly.

        Raises ValueError, and changes nothing, if the state belongs to a different environment.
        """
        if state.keys() != {"row", "np_random", "new_stream"}:
            raise ValueError(f"state has the keys {sorted(state)}; pass what get_state() of {self} returned")
        self._batch.check_state(state["row"])
        self.np_random = restore_generator(state["np_random"])
        # A generator that the user has set since the last reset is not yet the source of the batch's stream.
        self._seeded_from = None if state["new_stream"] else self.np_random
        self._batch.seed_row(
            0, restore_generator(state["np_random"]) if state["new_stream"] else self.np_random
        )
        self._batch.set_state(state["row"])
        self.np_random.bit_generator.state = state["np_random"]


def _row_info(infos: dict[str, Any]) -> dict[str, Any]:
    """Return the infos of the only sub-environment as plain values."""
    values = {name: infos[name][0] for name in infos if not name.startswith("_")}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}

"""Base classes of environments: a vector environment in numpy arrays, and a single environment over it.

All sub-environments of a vector environment are stepped together. A single environment is a vector
environment of size 1, so that both share one implementation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Int64

from scrubjay.envs.random_streams import RowState, RowStreams, restore_generator

Rows = Int64[np.ndarray, " some"]
Observations = np.ndarray | dict[str, np.ndarray]


class BatchedEnv(VectorEnv, RowState, ABC):
    """Vector environment with all sub-environments in arrays; handles seeding, autoreset, infos and state.

    A subclass implements `_reset_rows`, `_step_rows`, `_observe`, `_final_info`, `_render_frame` and
    `_render_text`. A row is the index of a sub-environment. `row_arrays` names the attributes, arrays
    `[num_envs, ...]`, that hold the state of the sub-environments; no other attribute may change between
    steps. Observations are an array, or a dict of arrays for a Dict space. Random numbers come from
    `self.streams` and are drawn in `_reset_rows` or `_step_rows`; a subclass with another generator overrides
    `seed_row`, `get_state`, `check_state` and `set_state`.

    With equal seeds and actions, results and infos are bit for bit the same as those of a `SyncVectorEnv` of
    single environments. Seed s gives sub-environment i the seed s + i. A list holds one seed per
    sub-environment; None in the list continues the random stream of that sub-environment.
    `reset(options={"reset_mask": mask})` resets only the sub-environments in the mask.
    """

    success_without_memory: float | None = None
    """Best mean `info["success"]` of a policy that acts on the current observation only; None if unknown."""
    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}

    def __init__(
        self,
        num_envs: int,
        observation_space: Space,
        action_space: Space,
        settings: Mapping[str, Any],
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Check the arguments that all environments share and build the batched spaces.

        Args:
            num_envs: Number of sub-environments.
            observation_space: Space of one sub-environment.
            action_space: Space of one sub-environment.
            settings: Options of the environment; `set_state` accepts only states with equal settings.
            render_mode: One of `metadata["render_modes"]`, or None.
            autoreset_mode: When to reset a sub-environment whose episode has ended. By default it is reset in
                the next step, as in gymnasium.
        """
        num_envs = check_integer("num_envs", num_envs, 1)
        check_render_mode(render_mode, self.metadata["render_modes"])
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            choices = ", ".join(mode.value for mode in AutoresetMode)
            raise ValueError(f"autoreset_mode={autoreset_mode!r}: choose from {choices}") from None
        self.num_envs = num_envs
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self.settings = dict(settings)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.streams = RowStreams(self.num_envs, np.random.default_rng())
        self._row = np.arange(self.num_envs)
        self._dones: Bool[np.ndarray, " rows"] | None = None

    @abstractmethod
    def _reset_rows(self, rows: Rows) -> None:
        """Reset the sub-environments `rows`."""

    @abstractmethod
    def _step_rows(
        self, actions: np.ndarray
    ) -> tuple[Float[np.ndarray, " rows"], Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
        """Step every sub-environment; return rewards (float64), terminated, truncated.

        Sub-environments whose episode has ended are stepped too under next-step autoreset. Their results are
        discarded, but the step must not fail or change other sub-environments.
        """

    @abstractmethod
    def _observe(self, rows: Rows | slice) -> Observations:
        """Return current observations of sub-environments `rows` in new arrays; must not change any state."""

    @abstractmethod
    def _final_info(self) -> dict[str, np.ndarray]:
        """Return last-step infos for all sub-environments; the caller uses those whose episode has ended."""

    def _info(self) -> dict[str, np.ndarray]:
        """Return the info of every step, including resets, for all sub-environments."""
        return {}

    @abstractmethod
    def _render_frame(self, row: int) -> np.ndarray:
        """Render one sub-environment as an image, uint8 `[height, width, 3]`."""

    @abstractmethod
    def _render_text(self, row: int) -> str:
        """Render one sub-environment as a few lines of text."""

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all sub-environments, or those in `options["reset_mask"]`; return observations and infos.

        Raises ValueError if there are not `num_envs` seeds, or the mask is not a bool array of this length.
        """
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(f"reset_mask is {mask.dtype}{mask.shape}; expected bool({self.num_envs},)")
        if self._dones is None and not mask.all():
            raise ResetNeeded(
                "the first reset must cover all environments; call reset() without reset_mask first"
            )
        rows = np.flatnonzero(mask)
        for row, row_seed in zip(rows, self._row_seeds(seed)[rows], strict=True):
            if row_seed is not None:
                self.seed_row(int(row), seeding.np_random(row_seed)[0])
        self._reset_rows(rows)
        self._dones = np.zeros(self.num_envs, dtype=np.bool_) if self._dones is None else self._dones & ~mask
        return self._observe(slice(None)), _mask_infos(self._info(), mask)

    def seed_row(self, row: int, generator: np.random.Generator) -> None:
        """Seed the random stream of one sub-environment from `generator`."""
        self.streams.seed(np.array([row]), generator)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all sub-environments; return observations, rewards, terminated, truncated, infos.

        Raises ValueError on actions outside the action space. Raises ResetNeeded if a sub-environment must be
        reset first.
        """
        actions = np.asarray(actions)
        if not self.action_space.contains(actions):
            raise ValueError(f"actions={actions!r}: expected an element of {self.action_space}")
        previous_dones = self._dones
        if previous_dones is None:
            raise ResetNeeded("step() was called before reset()")
        restart = previous_dones.any()
        if restart and self.autoreset_mode is AutoresetMode.DISABLED:
            indices = np.flatnonzero(previous_dones).tolist()
            raise ResetNeeded(f"episodes of environments {indices} have ended; reset these before step()")
        rewards, terminated, truncated = self._step_rows(actions)
        if restart:
            rewards[previous_dones] = 0.0
            terminated[previous_dones] = truncated[previous_dones] = False
            self._reset_rows(np.flatnonzero(previous_dones))
        dones = terminated | truncated
        self._dones = dones
        observations, infos = self._observe(slice(None)), self._info()
        if not dones.any():
            return observations, rewards, terminated, truncated, _mask_infos(infos, np.ones_like(dones))
        summary = _mask_infos(self._final_info(), dones)
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            infos = _mask_infos(infos, np.ones_like(dones)) | summary
            return observations, rewards, terminated, truncated, infos
        rows = np.flatnonzero(dones)
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in rows:
            final_obs[row] = select_row(observations, int(row))
        final_info = _mask_infos(infos, dones) | summary
        self._reset_rows(rows)
        self._dones = np.zeros(self.num_envs, dtype=np.bool_)
        fresh = self._observe(rows)
        if isinstance(observations, dict):
            for name, values in observations.items():
                values[rows] = fresh[name]
        else:
            observations[rows] = fresh
        infos = {
            "final_obs": final_obs,
            "_final_obs": dones.copy(),
            "final_info": final_info,
            "_final_info": dones.copy(),
            **_mask_infos(self._info(), np.ones_like(dones)),
        }
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """Return one image or text per sub-environment, by `render_mode`; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._dones is None:
            raise ResetNeeded("render() was called before reset()")
        draw = self._render_frame if self.render_mode == "rgb_array" else self._render_text
        return tuple(draw(row) for row in range(self.num_envs))

    def get_state(self) -> dict[str, Any]:
        """Return copies of the full state, including random streams, as numpy arrays."""
        if self._dones is None:
            raise ResetNeeded("get_state() was called before reset()")
        return {**super().get_state(), "ended": self._dones.copy()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if `state` is from another environment, other settings or another `num_envs`."""
        super().check_state(state)
        self._check_array(state, "ended", np.zeros(self.num_envs, dtype=np.bool_))

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state` exactly.

        Raises ValueError, and changes nothing, if `check_state` rejects the state.
        """
        super().set_state(state)
        self._dones = np.array(state["ended"])

    def _row_seeds(self, seed: int | Sequence[int | None] | None) -> np.ndarray:
        if seed is None or isinstance(seed, (int, np.integer)):
            super().reset(seed=None if seed is None else int(seed))
            seeds = [None if seed is None else int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries; expected one per environment, {self.num_envs}")
        array = np.empty(self.num_envs, dtype=object)
        array[:] = seeds
        return array


def select_row(observations: Observations, row: int) -> Any:
    """Return a copy of the observation of one sub-environment, without the batch axis."""
    if isinstance(observations, dict):
        return {name: values[row].copy() for name, values in observations.items()}
    return observations[row].copy()


def _mask_infos(infos: dict[str, np.ndarray], mask: Bool[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
    """Return infos in gymnasium's vector format, with values only where `mask` is True.

    Elsewhere each array is zero or None. A copy of the mask is added under the key `_name` for each `name`.
    """
    result = {}
    for name, values in infos.items():
        result[name] = np.full(len(mask), None) if values.dtype == object else np.zeros_like(values)
        result[name][mask] = values[mask]
        result[f"_{name}"] = mask.copy()
    return result


def check_integer(name: str, value: Any, low: int, high: int | None = None, limits: str | None = None) -> int:
    """Return `value` as a Python integer. Raises ValueError unless it is an integer from `low` to `high`.

    `limits` replaces the text "from low to high" in the message.
    """
    if not is_integer(value) or value < low or (high is not None and value > high):
        limits = limits or (f"of at least {low}" if high is None else f"from {low} to {high}")
        raise ValueError(f"{name}={value!r}: expected an integer {limits}")
    return int(value)


def check_render_mode(render_mode: str | None, modes: Sequence[str]) -> None:
    """Raise ValueError unless `render_mode` is one of `modes`, or None."""
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"render_mode={render_mode!r}: choose from {', '.join(modes)}, or None")


def is_integer(value: Any) -> bool:
    """Return True if `value` is a Python or numpy integer; booleans are not integers."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_bool(name: str, value: Any) -> bool:
    """Return `value` as a Python boolean. Raises ValueError unless it is a boolean."""
    if type(value) not in (bool, np.bool_):
        raise ValueError(f"{name}={value!r}: expected True or False")
    return bool(value)


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

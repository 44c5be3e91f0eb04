"""Many copies of one environment stepped together by numpy: what all of scrubjay's environments stand on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Int64

from scrubjay.envs.streams import RowStreams

Rows = Int64[np.ndarray, " some"]
Observations = np.ndarray | dict[str, np.ndarray]


class BatchedEnv(VectorEnv, ABC):
    """A vector environment whose rows live in arrays; seeding, autoreset, infos and state are done here.

    A subclass writes the rules: `_begin`, `_advance`, `_observe`, `_summary`, `_frame`, `_text`, and names in
    `row_arrays` the arrays `[num_envs, ...]` that hold its rows; nothing else may change over time.
    Observations are an array, or a dict of arrays under a Dict space. Randomness comes from `self.streams`,
    drawn in `_begin` or `_advance`; a subclass with another source overrides `seed_row`, `get_state`,
    `check_state` and `set_state`.

    For equal seeds and actions it equals `SyncVectorEnv` over the single environments bit for bit, infos
    included. Seed s gives row i the seed s + i; a list gives one seed (or None, to go on) per row.
    `reset(options={"reset_mask": mask})` restarts only some rows.
    """

    row_arrays: tuple[str, ...]
    success_without_memory: float | None = None
    """Best mean `info["success"]` of a policy that knows the present observation only; None if not worked
    out."""
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
        """Check what all environments have in common.

        Args:
            num_envs: Rows.
            observation_space: Of one row.
            action_space: Of one row.
            settings: What makes this environment another one than its class's default; a state is only of its
                own.
            render_mode: One of `metadata["render_modes"]`, or None.
            autoreset_mode: When a row whose episode ended begins the next: by gymnasium's default, in the
                step after.
        """
        if not is_integer(num_envs) or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}: expected an integer of at least 1")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            choices = ", ".join(self.metadata["render_modes"])
            raise ValueError(f"render_mode={render_mode!r}: choose from {choices}, or None")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            choices = ", ".join(mode.value for mode in AutoresetMode)
            raise ValueError(f"autoreset_mode={autoreset_mode!r}: choose from {choices}") from None
        self.num_envs = int(num_envs)
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self.settings = dict(settings)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.streams = RowStreams(self.num_envs, np.random.default_rng())
        self._row = np.arange(self.num_envs)
        self._ended: Bool[np.ndarray, " rows"] | None = None

    @abstractmethod
    def _begin(self, rows: Rows) -> None:
        """Start a new episode in each of `rows`."""

    @abstractmethod
    def _advance(
        self, actions: np.ndarray
    ) -> tuple[Float[np.ndarray, " rows"], Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
        """Step every row; return rewards (float64), terminated, truncated.

        Rows that have ended and not begun again may be stepped too (next-step autoreset): what that does to
        them is discarded, but it must not fail or touch other rows.
        """

    @abstractmethod
    def _observe(self, rows: Rows | slice) -> Observations:
        """Return the present observations of `rows`, in fresh arrays; must not change anything."""

    @abstractmethod
    def _summary(self) -> dict[str, np.ndarray]:
        """Return the info of an episode's last step, for every row; read only in rows that have ended."""

    def _info(self) -> dict[str, np.ndarray]:
        """Return the info of every step, resets included, for every row."""
        return {}

    @abstractmethod
    def _frame(self, row: int) -> np.ndarray:
        """Return a picture of one row, uint8 `[height, width, 3]`."""

    @abstractmethod
    def _text(self, row: int) -> str:
        """Return one row in a few lines of text."""

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes in all rows, or in those of `options["reset_mask"]`; return observations, infos.

        Raises ValueError if the number of seeds or the mask's shape is not num_envs.
        """
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(f"reset_mask is {mask.dtype}{mask.shape}; expected bool({self.num_envs},)")
        if self._ended is None and not mask.all():
            raise ResetNeeded("the first reset must start every row; call reset() without a mask first")
        rows = np.flatnonzero(mask)
        for row, row_seed in zip(rows, self._row_seeds(seed)[rows], strict=True):
            if row_seed is not None:
                self.seed_row(int(row), seeding.np_random(row_seed)[0])
        self._begin(rows)
        self._ended = np.zeros(self.num_envs, dtype=np.bool_) if self._ended is None else self._ended & ~mask
        return self._observe(slice(None)), _masked(self._info(), mask)

    def seed_row(self, row: int, generator: np.random.Generator) -> None:
        """Let all of a row's future randomness come from `generator`."""
        self.streams.seed(np.array([row]), generator)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all rows; return observations, rewards, terminated, truncated, infos.

        Raises ValueError on actions outside the action space and ResetNeeded where an episode must begin
        first.
        """
        actions = np.asarray(actions)
        if not self.action_space.contains(actions):
            raise ValueError(f"actions={actions!r}: expected an element of {self.action_space}")
        before = self._ended
        if before is None:
            raise ResetNeeded("step() was called before reset()")
        restart = before.any()
        if restart and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ResetNeeded(f"rows {np.flatnonzero(before).tolist()} have ended; reset them before step()")
        rewards, terminated, truncated = self._advance(actions)
        if restart:
            rewards[before] = 0.0
            terminated[before] = truncated[before] = False
            self._begin(np.flatnonzero(before))
        ended = terminated | truncated
        self._ended = ended
        observations, infos = self._observe(slice(None)), self._info()
        if not ended.any():
            return observations, rewards, terminated, truncated, _masked(infos, np.ones_like(ended))
        summary = _masked(self._summary(), ended)
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            infos = _masked(infos, np.ones_like(ended)) | summary
            return observations, rewards, terminated, truncated, infos
        rows = np.flatnonzero(ended)
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in rows:
            final_obs[row] = row_of(observations, int(row))
        final_info = _masked(infos, ended) | summary
        self._begin(rows)
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        fresh = self._observe(rows)
        if isinstance(observations, dict):
            for name, values in observations.items():
                values[rows] = fresh[name]
        else:
            observations[rows] = fresh
        infos = {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": final_info,
            "_final_info": ended.copy(),
            **_masked(self._info(), np.ones_like(ended)),
        }
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """Return one picture or text per row, by `render_mode`; None if there is no render mode."""
        if self.render_mode is None:
            return None
        if self._ended is None:
            raise ResetNeeded("render() was called before reset()")
        draw = self._frame if self.render_mode == "rgb_array" else self._text
        return tuple(draw(row) for row in range(self.num_envs))

    def get_state(self) -> dict[str, Any]:
        """Return all that decides the future, random streams included, as copied numpy arrays."""
        if self._ended is None:
            raise ResetNeeded("get_state() was called before reset()")
        return {
            "settings": dict(self.settings),
            "streams": self.streams.position.copy(),
            "ended": self._ended.copy(),
            **{name: getattr(self, name).copy() for name in self.row_arrays},
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if `state` is of another environment, other settings or another num_envs."""
        if state.get("settings") != self.settings:
            raise ValueError(
                f"state is of settings {state.get('settings')}; this environment has {self.settings}"
            )
        own = {name: getattr(self, name) for name in self.row_arrays}
        own |= {"streams": self.streams.position, "ended": np.zeros(self.num_envs, dtype=np.bool_)}
        for name, values in own.items():
            if name not in state:
                raise ValueError(
                    f"state lacks {name!r}; pass what get_state() of {type(self).__name__} returned"
                )
            given = np.asarray(state[name])
            if (given.dtype, given.shape) != (values.dtype, values.shape):
                raise ValueError(
                    f"state[{name!r}] is {given.dtype}{given.shape}; expected {values.dtype}{values.shape}"
                )

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go back to exactly where `get_state` was called, whatever happened since.

        Raises ValueError, and changes nothing, where `check_state` does.
        """
        self.check_state(state)
        self.streams.position = np.array(state["streams"])
        self._ended = np.array(state["ended"])
        for name in self.row_arrays:
            setattr(self, name, np.array(state[name]))

    def _row_seeds(self, seed: int | Sequence[int | None] | None) -> np.ndarray:
        if seed is None or isinstance(seed, (int, np.integer)):
            super().reset(seed=None if seed is None else int(seed))
            seeds = [None if seed is None else int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries; expected one per row, {self.num_envs}")
        array = np.empty(self.num_envs, dtype=object)
        array[:] = seeds
        return array


def row_of(observations: Observations, row: int) -> Any:
    """Return one row's observation as a single environment returns it."""
    if isinstance(observations, dict):
        return {name: values[row].copy() for name, values in observations.items()}
    return observations[row].copy()


def _masked(infos: dict[str, np.ndarray], mask: Bool[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
    """Return infos as gymnasium batches them: blank outside the mask, and the mask beside each."""
    result = {}
    for name, values in infos.items():
        result[name] = np.full(len(mask), None) if values.dtype == object else np.zeros_like(values)
        result[name][mask] = values[mask]
        result[f"_{name}"] = mask.copy()
    return result


def is_bool(value: Any) -> bool:
    """Say whether `value` is True or False, of Python or numpy."""
    return isinstance(value, (bool, np.bool_))


def is_integer(value: Any) -> bool:
    """Say whether `value` is an integer, of Python or numpy; booleans are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)

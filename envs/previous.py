"""What was done and paid in the step before, seen beside each observation.

As in recurrent policies since RL² (Duan et al. 2016, arXiv 1611.02779): a memory that is told its own actions
and what came of them need not guess them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

Input = Literal["observation", "action", "reward"]


class PreviousStep(gymnasium.Wrapper, RecordConstructorArgs):
    """Observations become a Dict of `inputs`: "observation", "action" and "reward" of the step before.

    Where an episode begins the reward is 0 and the action is none: one more index after an action space's
    own, zeros of a Box or MultiBinary. Raises ValueError on inputs that there are not, TypeError on an action
    space of another kind.
    """

    stateless = True
    """It keeps nothing between steps, so that an environment under it is restored as if it were not there."""

    def __init__(
        self, env: gymnasium.Env, inputs: Sequence[Input] = ("observation", "action", "reward")
    ) -> None:
        RecordConstructorArgs.__init__(self, inputs=tuple(inputs))
        super().__init__(env)
        self._beside = _Beside(env.observation_space, env.action_space, inputs)
        self.observation_space = self._beside.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin an episode: nothing was done before."""
        observation, info = super().reset(seed=seed, options=options)
        return self._beside.show(observation, self._beside.none, np.zeros(1, dtype=np.float32)), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """Step, and show the action and its reward."""
        observation, reward, terminated, truncated, info = super().step(action)
        paid = np.array([reward], dtype=np.float32)
        shown = self._beside.show(observation, self._beside.taken(action), paid)
        return shown, reward, terminated, truncated, info


class PreviousSteps(VectorWrapper):
    """`PreviousStep` of every row of a batch that begins episodes in the step that ends one (SAME_STEP).

    Raises ValueError on a batch of another kind, too.
    """

    stateless = True
    """As of `PreviousStep`."""

    def __init__(self, env: VectorEnv, inputs: Sequence[Input] = ("observation", "action", "reward")) -> None:
        super().__init__(env)
        mode = getattr(env, "autoreset_mode", env.metadata.get("autoreset_mode"))
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"the environment's autoreset_mode is {getattr(mode, 'value', mode)}; make it with "
                "autoreset_mode='SameStep', or wrap each of its environments in PreviousStep"
            )
        self._beside = _Beside(env.single_observation_space, env.single_action_space, inputs)
        self.single_observation_space = self._beside.space
        self.observation_space = batch_space(self._beside.space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin an episode in every row. Raises ValueError if only some are to begin."""
        if options is not None and "reset_mask" in options:
            raise ValueError("reset_mask: what was done before in the other rows is not kept; reset all rows")
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._beside.show(observations, *self._nothing()), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Step every row, and show actions and their rewards, in rows that begin an episode none."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        taken = np.array(self._beside.taken(np.asarray(actions)))
        paid = np.asarray(rewards, dtype=np.float32)[:, None].copy()
        ended = np.asarray(terminated) | np.asarray(truncated)
        if ended.any():
            infos = {**infos, "final_obs": self._final(infos["final_obs"], ended, taken.copy(), paid.copy())}
            none, zero = self._nothing()
            taken[ended], paid[ended] = none[ended], zero[ended]
        return self._beside.show(observations, taken, paid), rewards, terminated, truncated, infos

    def _final(self, seen: Any, ended: np.ndarray, taken: np.ndarray, paid: np.ndarray) -> Any:
        """Return what episodes ended with, as it came: an object for each row, or a batch."""
        if not (isinstance(seen, np.ndarray) and seen.dtype == object):
            return self._beside.show(seen, taken, paid)
        final = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(ended):
            final[row] = self._beside.show(seen[row], taken[row], paid[row])
        return final

    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        none = np.asarray(self._beside.none)
        return np.tile(none, (self.num_envs, *[1] * none.ndim)), np.zeros(
            (self.num_envs, 1), dtype=np.float32
        )


class _Beside:
    """Spaces and values of what is shown."""

    def __init__(self, observation: Space, action: Space, inputs: Sequence[Input]) -> None:
        known = get_args(Input)
        if not inputs or not set(inputs) <= set(known) or len(set(inputs)) < len(inputs):
            raise ValueError(f"inputs={tuple(inputs)!r}: choose from {', '.join(known)}, each at most once")
        self.inputs = tuple(inputs)
        shown, self.none = _with_none(action)
        of = {"observation": observation, "action": shown, "reward": Box(-np.inf, np.inf, (1,), np.float32)}
        self.space = Dict({name: of[name] for name in self.inputs})
        self._dtype = shown.dtype

    def taken(self, action: Any) -> Any:
        """Return actions as they are shown."""
        return np.asarray(action).astype(self._dtype)[()]

    def show(self, observation: Any, action: Any, reward: Any) -> dict[str, Any]:
        """Return what is seen."""
        of = {"observation": observation, "action": action, "reward": reward}
        return {name: of[name] for name in self.inputs}


def _with_none(space: Space) -> tuple[Space, Any]:
    """Return the space of actions and of no action, and no action."""
    if isinstance(space, Discrete):
        return Discrete(int(space.n) + 1, start=int(space.start)), np.int64(space.start + space.n)
    if isinstance(space, MultiDiscrete):
        return MultiDiscrete(space.nvec + 1, start=space.start), np.asarray(space.start + space.nvec)
    if isinstance(space, Box):
        low, high = np.minimum(space.low, 0), np.maximum(space.high, 0)
        return Box(low, high, dtype=space.dtype.type), np.zeros(space.shape, dtype=space.dtype)
    if isinstance(space, MultiBinary):
        return space, np.zeros(space.shape, dtype=space.dtype)
    raise TypeError(f"action space {space}: only Discrete, MultiDiscrete, Box and MultiBinary can be shown")

"""Wrappers that add the previous action and reward to each observation.

Recurrent policies have received these inputs since RL² (Duan et al. 2016, arXiv 1611.02779). With these
inputs, a memory need not infer the actions and rewards of its agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

Input = Literal["observation", "action", "reward"]


class PreviousStep(gymnasium.Wrapper, RecordConstructorArgs):
    """Wrapper that turns each observation into a dict that also holds the previous action and reward.

    After a reset the reward is 0 and the action is "no action": an extra index of a Discrete or MultiDiscrete
    space, zeros of a Box or MultiBinary space. In a Dict or Tuple space every part is "no action".

    Args:
        env: Environment to wrap.
        inputs: Keys of the dict: "observation", "action" and "reward".

    Raises:
        ValueError: On unknown inputs.
        TypeError: On another type of action space.
    """

    stateless = True
    """The wrapper has no state of its own; restoring the wrapped environment is enough."""

    def __init__(
        self, env: gymnasium.Env, inputs: Sequence[Input] = ("observation", "action", "reward")
    ) -> None:
        RecordConstructorArgs.__init__(self, inputs=tuple(inputs))
        super().__init__(env)
        self._builder = _ObservationBuilder(env.observation_space, env.action_space, inputs)
        self.observation_space = self._builder.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset the environment; the previous action is "no action" and the previous reward 0."""
        observation, info = super().reset(seed=seed, options=options)
        return self._builder.build(observation, self._builder.no_action, np.zeros(1, dtype=np.float32)), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """Step the environment; add the action and its reward to the observation."""
        observation, reward, terminated, truncated, info = super().step(action)
        reward_array = np.array([reward], dtype=np.float32)
        full_observation = self._builder.build(observation, self._builder.cast_action(action), reward_array)
        return full_observation, reward, terminated, truncated, info


class PreviousSteps(VectorWrapper):
    """`PreviousStep` for vector environments with same-step autoreset (`AutoresetMode.SAME_STEP`).

    Args:
        env: Vector environment to wrap.
        inputs: Keys of the dict, as in `PreviousStep`.

    Raises:
        ValueError: On another autoreset mode, and the errors of `PreviousStep`.
    """

    stateless = True
    """See `PreviousStep.stateless`."""

    def __init__(self, env: VectorEnv, inputs: Sequence[Input] = ("observation", "action", "reward")) -> None:
        super().__init__(env)
        mode = getattr(env, "autoreset_mode", env.metadata.get("autoreset_mode"))
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode={getattr(mode, 'value', mode)} is not supported; make the environment with "
                "autoreset_mode='SameStep', or wrap each sub-environment in PreviousStep"
            )
        self._builder = _ObservationBuilder(env.single_observation_space, env.single_action_space, inputs)
        self.single_observation_space = self._builder.space
        self.observation_space = batch_space(self._builder.space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset all sub-environments.

        Raises:
            ValueError: On a `reset_mask`.
        """
        if options is not None and "reset_mask" in options:
            raise ValueError(
                "reset_mask is not supported: the previous actions of environments that continue are not "
                "stored; reset all environments"
            )
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._builder.build(observations, *self._build_empty()), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Step all sub-environments; add their actions and rewards to the observations.

        The first observation after an automatic reset gets "no action" and the reward 0.
        """
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        action_array = self._builder.cast_action(actions, batched=True)
        reward_array = np.asarray(rewards, dtype=np.float32)[:, None].copy()
        dones = np.asarray(terminated) | np.asarray(truncated)
        if dones.any():
            final_obs = self._build_final(
                infos["final_obs"], dones, _map_parts(np.copy, action_array), reward_array.copy()
            )
            infos = {**infos, "final_obs": final_obs}
            none, zero = self._build_empty()
            _map_parts(lambda array, empty: array.__setitem__(dones, empty[dones]), action_array, none)
            reward_array[dones] = zero[dones]
        observations = self._builder.build(observations, action_array, reward_array)
        return observations, rewards, terminated, truncated, infos

    def _build_final(self, final_obs: Any, dones: np.ndarray, actions: Any, rewards: np.ndarray) -> Any:
        """Add actions and rewards to the final observations.

        The result has the form of `final_obs`: a batch, or an object array with one entry per environment.
        """
        if not (isinstance(final_obs, np.ndarray) and final_obs.dtype == object):
            return self._builder.build(final_obs, actions, rewards)
        final = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(dones):
            own_action = _map_parts(lambda array, row=row: array[row], actions)
            final[row] = self._builder.build(final_obs[row], own_action, rewards[row])
        return final

    def _build_empty(self) -> tuple[Any, np.ndarray]:
        none = _map_parts(
            lambda value: np.tile(value, (self.num_envs, *[1] * np.ndim(value))), self._builder.no_action
        )
        return none, np.zeros((self.num_envs, 1), dtype=np.float32)


class _ObservationBuilder:
    """Builder of observations with previous actions and rewards, and of their space."""

    def __init__(self, observation: Space, action: Space, inputs: Sequence[Input]) -> None:
        choices = get_args(Input)
        if not inputs or not set(inputs) <= set(choices) or len(set(inputs)) < len(inputs):
            raise ValueError(f"inputs={tuple(inputs)!r}: choose from {', '.join(choices)}, each at most once")
        self.inputs = tuple(inputs)
        action_space, self.no_action = _add_no_action(action)
        reward_space = Box(-np.inf, np.inf, (1,), np.float32)
        spaces = {"observation": observation, "action": action_space, "reward": reward_space}
        self.space = Dict({name: spaces[name] for name in self.inputs})

    def cast_action(self, action: Any, batched: bool = False) -> Any:
        """Copy actions to the dtypes of the action space that includes "no action"."""

        def cast(none: Any, value: Any) -> Any:
            array = np.array(value, dtype=none.dtype)
            return array if batched else array[()]

        return _map_parts(cast, self.no_action, action)

    def build(self, observation: Any, action: Any, reward: Any) -> dict[str, Any]:
        """Return a dict with the keys in `inputs`: observation, previous action and previous reward."""
        values = {"observation": observation, "action": action, "reward": reward}
        return {name: values[name] for name in self.inputs}


def _map_parts(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """Return the structure of `value`, dicts and tuples, with `function` of the parts of all arguments."""
    if isinstance(value, Mapping):
        parts = {key: [other[key] for other in others] for key in value}
        return {key: _map_parts(function, part, *parts[key]) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_map_parts(function, *parts) for parts in zip(value, *others, strict=True))
    return function(value, *others)


def _add_no_action(space: Space) -> tuple[Space, Any]:
    """Return the action space extended by "no action", and the value of "no action"."""
    if isinstance(space, Discrete):
        return Discrete(int(space.n) + 1, start=int(space.start)), np.int64(space.start + space.n)
    if isinstance(space, MultiDiscrete):
        return MultiDiscrete(space.nvec + 1, start=space.start), np.asarray(
            space.start + space.nvec, np.int64
        )
    if isinstance(space, Box):
        low, high = np.minimum(space.low, 0), np.maximum(space.high, 0)
        return Box(low, high, dtype=space.dtype.type), np.zeros(space.shape, dtype=space.dtype)
    if isinstance(space, MultiBinary):
        return space, np.zeros(space.shape, dtype=space.dtype)
    if isinstance(space, Dict) and space.spaces:
        larger = {key: _add_no_action(part) for key, part in space.spaces.items()}
        pairs: Any = [(key, part) for key, (part, _) in larger.items()]
        return Dict(pairs), {key: none for key, (_, none) in larger.items()}
    if isinstance(space, Tuple) and space.spaces:
        parts, nones = zip(*map(_add_no_action, space.spaces), strict=True)
        return Tuple(parts), nones
    raise TypeError(
        f"action space {space} is not supported; use Discrete, MultiDiscrete, Box, MultiBinary, or a Dict or "
        "Tuple of these, or leave 'action' out of inputs"
    )

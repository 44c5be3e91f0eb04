"""Action masks: where an environment offers them, and what makes a mask valid.

An environment offers its masks in one of three places, which are tried in this order:

1. the leaf `action_mask` of a Dict observation,
2. `info["action_mask"]` at every reset and step,
3. the method `action_masks()`, the interface of sb3-contrib.

A mask has one entry per action of a Discrete space. For a MultiDiscrete space the masks of all parts are
concatenated. An entry is 1 or True if the action is allowed. In rollouts and segments every mask is a leaf of
the observations, so masks from infos and methods are added to the leaves under the key `action_mask`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from jaxtyping import Bool
from torch import Tensor

from scrubjay.agents.rl.observations import EnvFaultError, leaf_values
from scrubjay.agents.rl.segment import Observation

MASK = "action_mask"
"""Name of the mask in observations, in infos and among the leaves of a rollout."""
METHOD = "action_masks"
"""Name of the method that returns the mask of an environment."""


@dataclass(frozen=True)
class ActionMasks:
    """Masks of an environment: their key among the leaves of observations, and their sizes."""

    key: str
    """Key of the mask among the leaves, such as `action_mask` or `observation/action_mask`."""
    sizes: tuple[int, ...]
    """Number of actions of each part of the action space."""
    in_observation: bool
    """True if the mask is a part of the observation space."""

    @classmethod
    def find(
        cls, observation: spaces.Space, action: spaces.Space, outside: bool = False
    ) -> ActionMasks | None:
        """Return the masks of an environment with these spaces; None if it offers none.

        With `outside=True` the environment offers masks in infos or by a method. A mask in the observations
        goes first. Raises EnvFaultError if the action space has no masks or if a mask has the wrong shape.
        """
        leaves = _find_masks(observation)
        keys = list(leaves)
        if len(keys) > 1:
            raise EnvFaultError(
                f"the observation space has the masks {', '.join(keys)}; keep one of them, the mask of the "
                "actions"
            )
        if not keys and not outside:
            return None
        masks = cls(keys[0] if keys else MASK, _part_sizes(action), bool(keys))
        if keys and leaves[keys[0]].shape != (masks.num_actions,):
            raise EnvFaultError(
                f"observation {keys[0]!r} has the space {leaves[keys[0]]}; a mask of {action} has the shape "
                f"({masks.num_actions},), such as MultiBinary({masks.num_actions})"
            )
        return masks

    @property
    def num_actions(self) -> int:
        """Length of a mask."""
        return sum(self.sizes)

    @property
    def leaf(self) -> spaces.Box:
        """Space of a mask that is not a part of the observation space."""
        return spaces.Box(0, 1, (self.num_actions,), np.uint8)

    def check(
        self, masks: Any, place: str, alive: Bool[np.ndarray, "envs agents"] | None = None
    ) -> Bool[np.ndarray, "envs *agents actions"]:
        """Return the masks of all environments as booleans.

        Raises EnvFaultError, which names the environment and `place`, such as "step 3", if a mask is missing,
        has the wrong shape, has other values than 0 and 1, or allows no action. None and NaN stand for a
        missing mask. Agents that are not `alive` are not checked.
        """
        try:
            array = np.asarray(masks, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.shape != (len(masks), *(() if alive is None else alive.shape[1:]), self.num_actions):
            for row, mask in enumerate(masks):
                self._check_shape(mask, f"environment {row}, {place}: the action mask")
        is_allowed = array == 1
        wrong = ~(is_allowed | (array == 0)).all(axis=-1)
        for part in np.split(is_allowed, np.cumsum(self.sizes)[:-1], axis=-1):
            wrong |= ~part.any(axis=-1)
        if alive is not None:
            wrong &= alive
        if wrong.any():
            row, *agent = np.argwhere(wrong)[0].tolist()
            owner = f" of agent {agent[0]}" if agent else ""
            fault = self._describe_fault(array[(row, *agent)])
            raise EnvFaultError(f"environment {row}, {place}: the action mask{owner} {fault}")
        return is_allowed

    def read(self, env: Any, observation: Any, info: Mapping[str, Any], step: int) -> np.ndarray:
        """Return the mask of a single environment after `step` steps. Raises the errors of `check`."""
        mask = leaf_values(observation)[self.key] if self.in_observation else read_mask(env, info)
        return self.check([mask], f"step {step}")[0]

    def _check_shape(self, mask: Any, name: str) -> None:
        try:
            shape = np.asarray(mask, dtype=np.float64).shape
        except (TypeError, ValueError):
            raise EnvFaultError(f"{name} is {_shorten(mask)}; {self._remedy}") from None
        if mask is None or shape != (self.num_actions,):
            fault = "is missing" if mask is None else f"has the shape {shape}"
            raise EnvFaultError(f"{name} {fault}; {self._remedy}")

    def _describe_fault(self, mask: np.ndarray) -> str:
        if np.isnan(mask).all():
            return f"is missing or NaN; {self._remedy}"
        if not np.isin(mask, (0, 1)).all():
            return f"contains {mask[~np.isin(mask, (0, 1))][0]:g}; {self._remedy}"
        parts = "" if len(self.sizes) == 1 else f" of a part; the parts have {list(self.sizes)} actions"
        return f"allows no action{parts}; allow at least one, or end the episode one step earlier"

    @property
    def _remedy(self) -> str:
        return f"return {self.num_actions} booleans, or numbers 0 and 1, in every reset and step"


def _part_sizes(space: spaces.Space) -> tuple[int, ...]:
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(space.nvec.ravel().tolist())
    raise EnvFaultError(
        f"action masks of the action space {space} are not supported; use Discrete or MultiDiscrete, or "
        "remove the mask"
    )


def drop_mask(space: spaces.Space) -> spaces.Space:
    """Return an observation space without masks, which are no features of a policy."""
    if isinstance(space, spaces.Dict):
        parts: Any = [(key, drop_mask(part)) for key, part in space.spaces.items() if key != MASK]
        return spaces.Dict(parts) if _find_masks(space) else space
    if isinstance(space, spaces.Tuple) and _find_masks(space):
        return spaces.Tuple([drop_mask(part) for part in space.spaces])
    return space


def _find_masks(space: spaces.Space, prefix: str = "") -> dict[str, spaces.Space]:
    """Return the masks of a space by key; its other parts may be of any type."""
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = list(enumerate(space.spaces))
    else:
        return {prefix: space} if is_mask(prefix) else {}
    by_part = [_find_masks(part, f"{prefix}/{key}" if prefix else str(key)) for key, part in parts]
    return {key: leaf for masks in by_part for key, leaf in masks.items()}


def is_mask(key: str) -> bool:
    """Return True if a leaf of observations with this key is an action mask."""
    return key.rpartition("/")[2] == MASK


def select_mask(
    observation: Observation, masks: ActionMasks | None, is_required: bool = False
) -> Bool[Tensor, "... actions"] | None:
    """Return the mask among the leaves of an observation; None if there is none.

    `masks` are the masks for which the policy was built. Raises ValueError if a mask is `is_required` and
    missing.
    """
    mask = None
    if isinstance(observation, dict):
        # A learner on Ray is built without a word on infos, but its segments have the masks.
        mask = observation.get(MASK if masks is None else masks.key)
    if mask is None and is_required:
        raise ValueError(
            f"the policy was built with action masks, but the observation has no leaf {MASK!r}; add it, or "
            f"pass action_mask=info[{MASK!r}] to the method act"
        )
    return None if mask is None else mask != 0


def read_mask(env: Any, info: Mapping[str, Any]) -> Any:
    """Return the mask that a single environment offers in `info` or by its method; None if it offers none."""
    if MASK in info:
        return info[MASK]
    if not has_method(env):
        return None
    return env.get_wrapper_attr(METHOD)() if isinstance(env, gymnasium.Env) else env.action_masks()


def has_method(env: Any) -> bool:
    """Return True if a gymnasium, vector or PettingZoo environment has the method `action_masks`."""
    if isinstance(env, VectorEnv):
        return hasattr(env, "call") and all(env.call("has_wrapper_attr", METHOD))  # type: ignore[attr-defined]
    if isinstance(env, gymnasium.Env):
        return env.has_wrapper_attr(METHOD)
    return callable(getattr(env, METHOD, None))


def refuse_mask(info: Mapping[str, Any], step: int) -> None:
    """Raise EnvFaultError if an info has a mask, although the policy or the first info has none."""
    if MASK in info:
        raise EnvFaultError(
            f"step {step}: info has the key {MASK!r}, but the first info had none, or the policy was built "
            "without action masks; offer a mask in every info from the first reset on, for a Discrete or "
            "MultiDiscrete action space, and build the policy with Spaces.from_env(envs) or "
            "Spaces(..., action_masks=True)"
        )


def sample_action(space: spaces.Space, mask: Bool[np.ndarray, " actions"] | None) -> Any:
    """Sample an allowed action of a space with the generator of the space; `mask=None` allows all."""
    if mask is None:
        return space.sample()
    ends = np.cumsum(_part_sizes(space))[:-1]
    choices = [space.np_random.choice(np.flatnonzero(part)) for part in np.split(mask, ends)]
    if isinstance(space, spaces.Discrete):
        return space.start + choices[0]
    assert isinstance(space, spaces.MultiDiscrete)
    return (np.reshape(choices, space.shape) + space.start).astype(space.dtype)


def _shorten(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:60]} ..."

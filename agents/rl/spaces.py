"""Observation and action spaces that a policy is built for, and their serialization as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import Space
from torch import Tensor

from scrubjay.agents.rl.masks.action_masks import MASK, ActionMasks
from scrubjay.agents.rl.masks.detection import keep_random_states, offers_masks
from scrubjay.agents.rl.observations import leaf_spaces

_MAX_NUMBERS = 2**24
"""Maximum numbers in one observation or action, which set the width of a policy's first and last layers."""
_MAX_AGENTS = 2**12
_MAX_DEPTH = 8
_MAX_SPACES = 2**10
"""Maximum number of nested spaces in one space."""
_MAX_AXES = 32
_READ_ERRORS = (LookupError, TypeError, AttributeError, AssertionError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Spaces:
    """Observation and action space of one agent, and the number of agents in its team.

    All agents of a team have the same spaces.
    """

    observation: Space
    """Observation space of one agent."""
    action: Space
    """Action space of one agent."""
    num_agents: int | None = None
    """Number of agents of a team; None for a single agent."""
    action_masks: bool = False
    """True if the environment offers action masks outside its observations: in `info["action_mask"]` or by
    the method `action_masks`. A mask in the observations is a part of their space."""

    @classmethod
    def from_env(cls, envs: Any) -> Self:
        """Return the spaces of a gymnasium environment, of a vector environment or of a `TeamEnv`.

        `envs` may be reset to find out about action masks. If it has a list `env_fns`, as gymnasium's vector
        environments have, one more environment is made and reset instead.
        """
        if isinstance(envs, gymnasium.Env):
            return cls(envs.observation_space, envs.action_space, action_masks=offers_masks(envs))
        agents = getattr(envs, "possible_agents", None)
        return cls(
            envs.single_observation_space,
            envs.single_action_space,
            None if agents is None else len(agents),
            _offers_masks(envs),
        )

    @cached_property
    def masks(self) -> ActionMasks | None:
        """Action masks, in or outside the observations; None without masks.

        Raises EnvFaultError if a mask does not match the action space.
        """
        return ActionMasks.find(self.observation, self.action, self.action_masks)

    @property
    def leaves(self) -> dict[str, Space]:
        """Leaves of the observations in a rollout: those of the space, and a mask outside of it."""
        leaves = leaf_spaces(self.observation)
        return (
            leaves if self.masks is None or self.masks.in_observation else {**leaves, MASK: self.masks.leaf}
        )

    def with_mask(
        self, leaves: dict[str, Tensor], action_mask: Any, batched: bool, alive: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return a batch of observations with the valid mask `action_mask`, if it is not None.

        Args:
            leaves: Parts of the observations by name.
            action_mask: Mask that the environment offers beside the observations; None for none.
            batched: True if the mask has the axis of the batch.
            alive: True for living agents, the only ones that need a mask; None for a single agent.

        Raises:
            ValueError: If a mask is missing or superfluous.
            EnvFaultError: If it is invalid.
        """
        masks, living = self.masks, None if alive is None else alive.cpu().numpy()
        if masks is not None and masks.in_observation:
            if action_mask is not None:
                raise ValueError(
                    f"action_mask is set, but the observation has the mask {masks.key!r}; omit it"
                )
            masks.check(leaves[masks.key].cpu().numpy(), "act", living)
            return leaves
        if action_mask is None:
            if self.action_masks:
                raise ValueError(
                    "action_mask is missing; this policy was trained with action masks: pass "
                    "action_mask=info['action_mask'], or action_mask=env.action_masks()"
                )
            return leaves
        masks = masks or ActionMasks.find(self.observation, self.action, outside=True)
        assert masks is not None
        array = masks.check(action_mask if batched else [action_mask], "act", living)
        device = next(iter(leaves.values())).device
        return {**leaves, MASK: torch.as_tensor(array, device=device)}

    def find_mismatch(self, other: Spaces) -> str | None:
        """Describe why a policy for these spaces cannot act in an environment with the spaces `other`.

        Returns None if the policy can act. The number of agents, shapes and dtypes must be equal. Discrete
        and MultiDiscrete spaces must also have equal sizes and start values. The bounds of a Box can differ.
        """
        if self.num_agents != other.num_agents:
            return f"the policy has num_agents={self.num_agents}, the environment {other.num_agents}"
        for what, ours, theirs in (
            ("observation", self.observation, other.observation),
            ("action", self.action, other.action),
        ):
            if _layer_signature(ours) != _layer_signature(theirs):
                return f"the policy's {what} space is {ours!s:.200}, the environment's {theirs!s:.200}"
        if self.action_masks != other.action_masks:
            policy, env = ("uses", "offers none") if self.action_masks else ("ignores", "offers them")
            return f"the policy {policy} action masks from infos or a method, and the environment {env}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the spaces as JSON-compatible values.

        Raises:
            TypeError: If a space is not supported.
        """
        return {
            "observation": _space_to_dict(self.observation),
            "action": _space_to_dict(self.action),
            "num_agents": self.num_agents,
            **({"action_masks": True} if self.action_masks else {}),
        }

    @classmethod
    def from_dict(cls, fields: Any) -> Self:
        """Return the spaces that `to_dict` converted.

        Raises:
            ValueError: On invalid fields and on implausibly large sizes.
        """
        try:
            num_agents = fields["num_agents"]
            return cls(
                _Reader().read(fields["observation"]),
                _Reader().read(fields["action"]),
                None if num_agents is None else _parse_int(num_agents, 1, _MAX_AGENTS),
                _parse_flag(fields.get("action_masks", False)),
            )
        except KeyError as error:
            raise ValueError(f"invalid spaces: the field {error} is missing") from error
        except _READ_ERRORS as error:
            raise ValueError("invalid spaces: a field has a wrong type") from error


def _offers_masks(envs: Any) -> bool:
    make_envs = getattr(envs, "env_fns", ())
    if isinstance(make_envs, Iterator):  # `gymnasium.make_vec` leaves a generator that it has used up
        return offers_masks(envs)
    if not make_envs:
        return False
    with keep_random_states():
        env = make_envs[0]()
        try:
            return offers_masks(env)
        finally:
            env.close()


def _layer_signature(space: Space) -> Any:
    """Return the properties of a space that a policy's layers depend on."""
    if isinstance(space, spaces.Dict):
        return {key: _layer_signature(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return [_layer_signature(part) for part in space.spaces]
    if isinstance(space, spaces.Discrete):
        return "Discrete", int(space.n), int(space.start), space.dtype
    if isinstance(space, spaces.MultiDiscrete):
        return "MultiDiscrete", space.nvec.tolist(), np.asarray(space.start).tolist(), space.dtype
    return type(space), space.shape, space.dtype


def _space_to_dict(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Dict):
        return {"space": "Dict", "parts": [[key, _space_to_dict(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"space": "Tuple", "parts": [_space_to_dict(part) for part in space.spaces]}
    if isinstance(space, spaces.Discrete):
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": space.dtype.name}
    if isinstance(space, spaces.MultiDiscrete):
        sizes = {"n": space.nvec.tolist(), "start": np.asarray(space.start).tolist()}
        return {"space": "MultiDiscrete", **sizes, "dtype": space.dtype.name}
    if isinstance(space, spaces.MultiBinary):
        return {"space": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound_to_plain(space.low), "high": _bound_to_plain(space.high)}
        return {"space": "Box", "shape": list(space.shape), **bounds, "dtype": space.dtype.name}
    raise TypeError(
        f"space {space}: expected Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"
    )


def _bound_to_plain(values: np.ndarray) -> Any:
    """Convert a bound of a Box to a single number if all values are equal, and to a flat list if not."""
    flat = [_number_to_plain(value) for value in values.reshape(-1).tolist()]
    return flat[0] if flat and all(value == flat[0] for value in flat) else flat


def _number_to_plain(value: float) -> int | float | str:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


class _Reader:
    """Reader of serialized spaces that limits their total size before anything is allocated."""

    def __init__(self) -> None:
        self.left, self.spaces_left = _MAX_NUMBERS, _MAX_SPACES

    def read(self, value: Any, depth: int = 0) -> spaces.Space:
        if depth > _MAX_DEPTH:
            raise ValueError(f"spaces are nested more than {_MAX_DEPTH} levels deep")
        self.spaces_left -= 1
        if self.spaces_left < 0:
            raise ValueError(f"too many nested spaces; the maximum is {_MAX_SPACES:,}")
        readers: dict[str, Callable[[Mapping[str, Any], int], spaces.Space]] = {
            "Box": self._box,
            "Dict": self._dict,
            "Discrete": self._discrete,
            "MultiBinary": self._multi_binary,
            "MultiDiscrete": self._multi_discrete,
            "Tuple": lambda v, d: spaces.Tuple([self.read(part, d + 1) for part in v["parts"]]),
        }
        name = value.get("space") if isinstance(value, dict) else value
        if not isinstance(name, str) or name not in readers:
            raise ValueError(f"space {name!r:.40}: choose from {', '.join(readers)}")
        return readers[name](value, depth)

    def _box(self, value: Mapping[str, Any], _: int) -> spaces.Box:
        dtype = _parse_dtype(value["dtype"], "biuf")
        shape = _parse_shape(value["shape"], 0)
        self._take(math.prod(shape))
        low, high = (_parse_bounds(value[name], shape, dtype) for name in ("low", "high"))
        if (low > high).any():
            raise ValueError("low must not be above high in a Box")
        return spaces.Box(low, high, dtype=dtype.type)

    def _dict(self, value: Mapping[str, Any], depth: int) -> spaces.Dict:
        parts: Any = [(_parse_key(key), self.read(part, depth + 1)) for key, part in value["parts"]]
        names = [str(key) for key, _ in parts]
        if len(set(names)) < len(names):
            raise ValueError(f"keys {names!s:.200} of a Dict space: each key must occur once")
        return spaces.Dict(parts)

    def _discrete(self, value: Mapping[str, Any], _: int) -> spaces.Discrete:
        size = self._take(_parse_int(value["n"], 1))
        start = _parse_int(value["start"], -(2**62), 2**62)
        return spaces.Discrete(size, start=start, dtype=_parse_dtype(value["dtype"], "iu").type)

    def _multi_binary(self, value: Mapping[str, Any], _: int) -> spaces.MultiBinary:
        size = value["n"]
        many = list(_parse_shape(size if isinstance(size, list) else [size], 1))
        self._take(math.prod(many))
        return spaces.MultiBinary(many if isinstance(size, list) else size)

    def _multi_discrete(self, value: Mapping[str, Any], _: int) -> spaces.MultiDiscrete:
        sizes, start = (_parse_array(value[name]) for name in ("n", "start"))
        if sizes.dtype.kind != "i" or start.dtype.kind != "i":
            raise ValueError(
                f"MultiDiscrete with n={value['n']!r:.40} and start={value['start']!r:.40}: both must have "
                "only integers"
            )
        # One layer has the logits of all entries, each padded to the largest number of choices.
        self._take(sizes.size * max((_parse_int(size, 1) for size in sizes.reshape(-1).tolist()), default=0))
        return spaces.MultiDiscrete(sizes, dtype=_parse_dtype(value["dtype"], "iu").type, start=start)

    def _take(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise ValueError(f"too many numbers or choices in the spaces; the maximum is {_MAX_NUMBERS:,}")
        return count


def _parse_bounds(value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    numbers = [_parse_bound(item) for item in (value if isinstance(value, list) else [value])]
    return np.full(shape, numbers[0], dtype) if len(numbers) == 1 else np.array(numbers, dtype).reshape(shape)


def _parse_bound(value: Any) -> float:
    if value in ("inf", "-inf"):
        return float(value)
    if type(value) not in (int, float, bool) or value != value:  # noqa: PLR0124  (rejects NaN)
        raise ValueError(f"bound {value!r:.40} of a Box: expected a number")
    return value


def _parse_shape(value: Any, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MAX_AXES:
        raise ValueError(f"shape {value!r:.40}: expected a list of at most {_MAX_AXES} sizes")
    return tuple(_parse_int(size, least) for size in value)


def _parse_array(value: Any) -> np.ndarray:
    """Convert nested lists to an array; values that NumPy cannot convert become an object array."""
    try:
        return np.array(value)
    except (ValueError, OverflowError):
        return np.array(None)


def _parse_dtype(name: Any, kinds: str) -> np.dtype:
    dtype = np.dtype(name) if isinstance(name, str) and name.isalnum() else None
    if dtype is None or dtype.kind not in kinds or dtype.name != name:
        raise ValueError(f"dtype={name!r:.40}: expected the dtype of a number, such as float32")
    return dtype


def _parse_flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"action_masks={value!r:.40}: expected true or false")
    return value


def _parse_key(value: Any) -> str | int:
    if type(value) not in (str, int):
        raise ValueError(f"key {value!r:.40} of a Dict space: expected a string or an integer")
    return value


def _parse_int(value: Any, least: int, most: int = _MAX_NUMBERS) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"number {value!r:.40} in the spaces: expected an integer from {least} to {most:,}")
    return value

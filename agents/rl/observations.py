"""From what environments return to tensors: containers become flat dicts, each leaf gets one dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from scrubjay.agents.rl.segment import Observation


class EnvFaultError(ValueError):
    """An environment shows or pays something else than its spaces say, or than can be learned from."""


def leaf_spaces(space: spaces.Space) -> dict[str, spaces.Space]:
    """Return the plain spaces inside `space`, nested keys joined by "/"; a plain space has the key "".

    Raises TypeError, naming the space, if one of them is not supported.
    """
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = [(str(index), part) for index, part in enumerate(space.spaces)]
    elif isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return {"": space}
    else:
        raise TypeError(
            f"observation space {space} is not supported; use Box, Discrete, MultiDiscrete, MultiBinary, "
            "or a Dict or Tuple of these"
        )
    return {_join(key, inner): leaf for key, part in parts for inner, leaf in leaf_spaces(part).items()}


def leaf_values(observation: Any) -> dict[str, Any]:
    """Return the arrays inside an observation, batched or not, under the keys of `leaf_spaces`."""
    if isinstance(observation, Mapping):
        parts = list(observation.items())
    elif isinstance(observation, tuple):
        parts = [(str(index), part) for index, part in enumerate(observation)]
    else:
        return {"": observation}
    return {_join(key, inner): leaf for key, part in parts for inner, leaf in leaf_values(part).items()}


def leaf_dtype(space: spaces.Space) -> torch.dtype:
    """Return the dtype a leaf is kept in: bytes stay bytes, indices are int64, all else float32."""
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return torch.int64
    return torch.uint8 if space.dtype == np.uint8 else torch.float32


def from_leaves(leaves: dict[str, Tensor]) -> Observation:
    """Return the one tensor of a plain space, or the dict itself."""
    return leaves.get("", leaves)


def to_leaves(observation: Observation) -> dict[str, Tensor]:
    """Undo `from_leaves`."""
    return observation if isinstance(observation, dict) else {"": observation}


def to_tensors(space: spaces.Space, observation: Any, device: torch.device) -> Observation:
    """Return an environment's observation, batched or not, as tensors of the leaves' dtypes on `device`."""
    values = leaf_values(observation)
    return from_leaves(
        {
            key: torch.as_tensor(values[key], device=device).to(leaf_dtype(leaf))
            for key, leaf in leaf_spaces(space).items()
        }
    )


def check_shown(space: spaces.Space, observation: Any) -> None:
    """Raise EnvFaultError, naming the part, if one observation has not the form that `space` says."""
    values = leaf_values(observation)
    for key, leaf in leaf_spaces(space).items():
        if key not in values:
            raise EnvFaultError(
                f"an observation has {sorted(values)} and not {key!r}, as its space, {space}, has"
            )
        try:
            shape = np.shape(values[key])
        except ValueError:  # of lists of several lengths
            shape = None
        if shape != leaf.shape:
            raise EnvFaultError(f"{_named(key)} has shape {shape}, and {leaf.shape} by its space, {leaf}")
    check_indices(leaf_spaces(space), values)


def check_indices(leaves: Mapping[str, spaces.Space], values: Mapping[str, Any]) -> None:
    """Raise EnvFaultError if an index is none of its space's, which an encoder would take for another's.

    The values may be batched. What lies in a set's empty slots is passed over, as it is never read.
    """
    for key, leaf in leaves.items():
        if isinstance(leaf, (spaces.Discrete, spaces.MultiDiscrete)):
            value, count = np.asarray(values[key]), leaf.n if isinstance(leaf, spaces.Discrete) else leaf.nvec
            wrong = value[_read(key, values, (value < leaf.start) | (value >= leaf.start + count))]
            if wrong.size:
                raise EnvFaultError(f"{_named(key)} holds {wrong[0]}, which is not of its space, {leaf}")


def check_numbers(leaves: Mapping[str, spaces.Space], values: Mapping[str, Any]) -> None:
    """Raise EnvFaultError if a number is not finite. Else as `check_indices`."""
    for key, leaf in leaves.items():
        if isinstance(leaf, spaces.Box):
            value = np.asarray(values[key])
            wrong = value[_read(key, values, ~np.isfinite(value))]
            if wrong.size:
                raise EnvFaultError(f"{_named(key)} holds {wrong[0]}: a policy sees finite numbers")


def check_rewards(rewards: np.ndarray) -> None:
    """Raise EnvFaultError if a reward `[time, rows, ...]` is no finite number."""
    bad = np.argwhere(~np.isfinite(rewards))
    if len(bad):
        raise EnvFaultError(f"row {bad[0][1]} was paid {rewards[tuple(bad[0])]}: a reward is a finite number")


def is_batched(space: spaces.Space, observation: Observation) -> bool:
    """Return whether an observation has a batch axis. Raises ValueError if its shape fits neither way."""
    leaves = to_leaves(observation)
    key, leaf = next(iter(leaf_spaces(space).items()))
    expected, actual = leaf.shape or (), tuple(leaves[key].shape)
    if actual == expected:
        return False
    if actual[1:] == expected and len(actual) == len(expected) + 1:
        return True
    raise ValueError(f"observation {key!r} has shape {actual}; expected {expected}, or [batch] before it")


def _read(key: str, values: Mapping[str, Any], wrong: np.ndarray) -> np.ndarray:
    """Return where something is wrong, but for the empty slots of a set, which `key` may be."""
    mask = values.get(f"{key}_mask")
    return (
        wrong
        if mask is None or np.ndim(mask) != wrong.ndim - 1
        else wrong & (np.asarray(mask)[..., None] > 0)
    )


def _named(key: str) -> str:
    return f"observation {key!r}" if key else "an observation"


def _join(key: str, inner: str) -> str:
    return f"{key}/{inner}" if inner else key

"""Conversion of observations to flat dicts of tensors, and validation of environment outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from scrubjay.agents.rl.segment import Observation


class EnvFaultError(ValueError):
    """Error for an environment whose observations or rewards are invalid or do not match its spaces."""


def leaf_spaces(space: spaces.Space) -> dict[str, spaces.Space]:
    """Flatten a space to a dict of leaf spaces.

    Nested keys of Dict and Tuple spaces are joined by "/". A space of any other type is one leaf with the key
    "". Raises TypeError if a space is not supported, or if two of its leaves would have the same key.
    """
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = list(enumerate(space.spaces))
    elif isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return {"": space}
    else:
        raise TypeError(
            f"observation space {space} is not supported; use Box, Discrete, MultiDiscrete, MultiBinary, "
            "or a Dict or Tuple of these"
        )
    leaves: dict[str, spaces.Space] = {}
    for key, part in parts:
        for inner, leaf in leaf_spaces(part).items():
            name = _join(key, inner)
            if name in leaves:
                raise TypeError(f"observation space {space} has two parts {name!r}; rename one of them")
            leaves[name] = leaf
    return leaves


def leaf_values(observation: Any) -> dict[str, Any]:
    """Flatten an observation, batched or not, to a dict with the keys of `leaf_spaces`."""
    if isinstance(observation, Mapping):
        parts = list(observation.items())
    elif isinstance(observation, tuple):
        parts = list(enumerate(observation))
    else:
        return {"": observation}
    return {_join(key, inner): leaf for key, part in parts for inner, leaf in leaf_values(part).items()}


def leaf_dtype(space: spaces.Space) -> torch.dtype:
    """Return the tensor dtype of a leaf.

    The dtype is int64 for Discrete and MultiDiscrete, uint8 for other leaves of dtype uint8, else float32.
    """
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return torch.int64
    return torch.uint8 if space.dtype == np.uint8 else torch.float32


def from_leaves(leaves: dict[str, Tensor]) -> Observation:
    """Convert a dict of leaves to an observation: the tensor if "" is the only key, else the dict."""
    return leaves[""] if leaves.keys() == {""} else leaves


def to_leaves(observation: Observation) -> dict[str, Tensor]:
    """Return the dict of leaves of an observation; the inverse of `from_leaves`."""
    return observation if isinstance(observation, dict) else {"": observation}


def to_tensors(space: spaces.Space, observation: Any, device: torch.device) -> Observation:
    """Convert an environment's observation, batched or not, to tensors on `device`."""
    values = leaf_values(observation)
    return from_leaves(
        {
            key: torch.as_tensor(values[key], device=device).to(leaf_dtype(leaf))
            for key, leaf in leaf_spaces(space).items()
        }
    )


def check_observation(space: spaces.Space, observation: Any) -> None:
    """Raise EnvFaultError if keys, shapes or indices of an unbatched observation do not match `space`."""
    values = leaf_values(observation)
    for key, leaf in leaf_spaces(space).items():
        if key not in values:
            raise EnvFaultError(
                f"observation has no key {key!r}, only {sorted(values)}; the observation space is {space}"
            )
        try:
            shape = np.shape(values[key])
        except ValueError:  # ragged lists
            shape = None
        if shape != leaf.shape:
            raise EnvFaultError(
                f"{_describe_leaf(key)} has shape {shape}; expected {leaf.shape}, as its space is {leaf}"
            )
    check_indices(leaf_spaces(space), values)


def check_indices(leaves: Mapping[str, spaces.Space], values: Mapping[str, Any]) -> None:
    """Raise EnvFaultError if a Discrete or MultiDiscrete value is out of range.

    `IndexEncoder` has one embedding table for all entries of a space, so a value that is out of range can
    select the embedding of another entry. Values may have batch axes. The padding of sets is not checked,
    since no layer reads padding.
    """
    for key, leaf in leaves.items():
        if isinstance(leaf, (spaces.Discrete, spaces.MultiDiscrete)):
            value, count = np.asarray(values[key]), leaf.n if isinstance(leaf, spaces.Discrete) else leaf.nvec
            wrong = value[_drop_padding(key, values, (value < leaf.start) | (value >= leaf.start + count))]
            if wrong.size:
                raise EnvFaultError(
                    f"{_describe_leaf(key)} contains {wrong[0]}, which is not in its space, {leaf}"
                )


def check_finite(
    leaves: Mapping[str, spaces.Space], values: Mapping[str, Any], alive: np.ndarray | None = None
) -> None:
    """Raise EnvFaultError if a Box value is NaN or infinite.

    Values may have batch axes. Observations where `alive` is False and the padding of sets are not checked,
    since no layer reads them.
    """
    for key, leaf in leaves.items():
        if isinstance(leaf, spaces.Box):
            value = np.asarray(values[key])
            wrong = _drop_absent(_drop_padding(key, values, ~np.isfinite(value)), alive)
            if wrong.any():
                first = value[wrong][0]
                raise EnvFaultError(f"{_describe_leaf(key)} contains {first}; observations must be finite")


def find_outside(
    leaves: Mapping[str, spaces.Space], values: Mapping[str, Any], alive: np.ndarray | None = None
) -> str | None:
    """Describe the first Box value, in the order of time, that is outside its bounds; None if all are inside.

    Values have batch axes. Observations where `alive` is False and the padding of sets are not checked.
    """
    for key, leaf in leaves.items():
        if not isinstance(leaf, spaces.Box) or _allows_all(leaf):
            continue
        value = np.asarray(values[key])
        wrong = _drop_padding(key, values, (value < leaf.low) | (value > leaf.high))
        wrong = _drop_absent(wrong, alive)
        if wrong.any():
            index = tuple(np.argwhere(wrong)[0].tolist())
            place = index[len(index) - len(leaf.shape) :]
            at = f" at index {place}" if place else ""
            return f"{_describe_leaf(key)} contains {value[index]}{at}, which is outside its space, {leaf}"
    return None


def _allows_all(box: spaces.Box) -> bool:
    """Return True if every value of the dtype is inside the bounds, as for images of bytes."""
    if np.issubdtype(box.dtype, np.integer):
        limits = np.iinfo(box.low.dtype)
        return bool((box.low == limits.min).all() and (box.high == limits.max).all())
    return not (box.bounded_below.any() or box.bounded_above.any())


def check_rewards(rewards: np.ndarray) -> None:
    """Raise EnvFaultError if a reward `[time, num_envs, ...]` is NaN or infinite."""
    bad = np.argwhere(~np.isfinite(rewards))
    if len(bad):
        raise EnvFaultError(
            f"environment {bad[0][1]} returned the reward {rewards[tuple(bad[0])]}; rewards must be finite"
        )


def is_batched(space: spaces.Space, observation: Observation) -> bool:
    """Return True if an observation has a batch axis before the axes of `space`, and False if it has none.

    Raises ValueError if the shape matches `space` neither with nor without a batch axis.
    """
    leaves = to_leaves(observation)
    key, leaf = next(iter(leaf_spaces(space).items()))
    expected, actual = leaf.shape or (), tuple(leaves[key].shape)
    if actual == expected:
        return False
    if actual[1:] == expected and len(actual) == len(expected) + 1:
        return True
    raise ValueError(
        f"observation {key!r} has shape {actual}; expected {expected}, optionally with a batch axis first"
    )


def _drop_padding(key: str, values: Mapping[str, Any], wrong: np.ndarray) -> np.ndarray:
    """Return `wrong`, but with False for padding.

    `wrong` is True for each invalid value of the leaf `key`. A leaf has padding only if it is a set; then
    `values` also has its mask, under `{key}_mask`.
    """
    mask = values.get(f"{key}_mask")
    has_padding = mask is not None and np.ndim(mask) == wrong.ndim - 1
    return wrong & (np.asarray(mask)[..., None] > 0) if has_padding else wrong


def _drop_absent(wrong: np.ndarray, alive: np.ndarray | None) -> np.ndarray:
    """Return `wrong`, but with False where `alive` is False."""
    return wrong if alive is None else wrong & alive.reshape(alive.shape + (1,) * (wrong.ndim - alive.ndim))


def _describe_leaf(key: str) -> str:
    return f"observation {key!r}" if key else "observation"


def _join(key: Any, inner: str) -> str:
    return f"{key}/{inner}" if inner else str(key)

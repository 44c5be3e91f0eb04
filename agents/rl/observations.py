"""From what environments return to tensors: containers become flat dicts, each leaf gets one dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from scrubjay.agents.rl.segment import Observation


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


def _join(key: str, inner: str) -> str:
    return f"{key}/{inner}" if inner else key

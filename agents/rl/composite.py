"""Action heads of all spaces, and distributions of Dict and Tuple actions with independent parts."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, get_args

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.agents.rl.distributions import (
    CategoricalHead,
    Deviation,
    Distribution,
    GaussianHead,
    make_part_head,
)


class Composite:
    """Distribution of actions with independent parts.

    An action is one vector `[..., numbers]`: the numbers of all parts, in order. Without a Box these are
    int64 indices. With a Box they are floats of at least 32 bits, in which indices are exact.

    Args:
        parts: Distribution of each part.
        leaves: Action space of each part.
    """

    __slots__ = ("leaves", "parts")

    def __init__(self, parts: Sequence[Distribution], leaves: Sequence[spaces.Space]) -> None:
        self.parts, self.leaves = tuple(parts), tuple(leaves)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Sample actions."""
        return self._join([part.sample(generator) for part in self.parts])

    def mode(self) -> Tensor:
        """Return the most likely actions."""
        return self._join([part.mode() for part in self.parts])

    def log_prob(self, action: Tensor) -> Float[Tensor, "..."]:
        """Return the joint log-probability of all parts."""
        pairs = zip(self.parts, split_actions(self.leaves, action), strict=True)
        return _sum([part.log_prob(own) for part, own in pairs])

    def entropy(self) -> Float[Tensor, "..."]:
        """Return the joint entropy of all parts."""
        return _sum([part.entropy() for part in self.parts])

    def kl(self, other: Composite) -> Float[Tensor, "..."]:
        """Return KL(self, other), summed over the parts."""
        return _sum([part.kl(theirs) for part, theirs in zip(self.parts, other.parts, strict=True)])

    def barrier(self) -> Float[Tensor, "..."]:
        """Return KL(uniform, self), summed over the parts, which must all be discrete."""
        return _sum([part.barrier() for part in self.parts])  # pyright: ignore[reportAttributeAccessIssue]

    def outputs(self) -> Float[Tensor, "... outputs"]:
        """Return the normalized parameters of all parts as one vector."""
        return torch.cat([part.outputs() for part in self.parts], dim=-1)

    def fisher(self, direction: Float[Tensor, "... outputs"]) -> Float[Tensor, "... outputs"]:
        """Return F v for the vector v = `direction`, where F is the Fisher information of `outputs`."""
        directions = direction.split([part.outputs().shape[-1] for part in self.parts], dim=-1)
        products = [part.fisher(own) for part, own in zip(self.parts, directions, strict=True)]
        return torch.cat(products, dim=-1)

    def agent(self, index: int) -> Self:
        """Return the distribution of one agent."""
        return type(self)([part.agent(index) for part in self.parts], self.leaves)

    def detach(self) -> Self:
        """Return a copy without gradients."""
        return type(self)([part.detach() for part in self.parts], self.leaves)

    def _join(self, actions: Sequence[Tensor]) -> Tensor:
        """Return the actions of all parts as one tensor; the inverse of `split_actions`."""
        dtype = torch.int64
        for action in actions:
            if action.is_floating_point():
                dtype = torch.promote_types(action.dtype, torch.float32)
        pairs = zip(actions, self.leaves, strict=True)
        columns = [a.unsqueeze(-1) if isinstance(leaf, spaces.Discrete) else a for a, leaf in pairs]
        return torch.cat([column.to(dtype) for column in columns], dim=-1)


def split_actions(leaves: Sequence[spaces.Space], actions: Tensor) -> list[Tensor]:
    """Split the actions of a `Composite` into the actions of its parts, whose spaces are `leaves`."""
    columns = actions.split([math.prod(leaf.shape or ()) for leaf in leaves], dim=-1)
    return [_restore(leaf, column) for leaf, column in zip(leaves, columns, strict=True)]


def _restore(leaf: spaces.Space, column: Tensor) -> Tensor:
    if isinstance(leaf, spaces.Box):
        return column
    return column.squeeze(-1).long() if isinstance(leaf, spaces.Discrete) else column.long()


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


class CompositeHead(nn.Module):
    """Action head for Dict and Tuple spaces, also nested, with one head for each part."""

    def __init__(
        self, space: spaces.Dict | spaces.Tuple, dim: int, deviation: Deviation = "constant"
    ) -> None:
        super().__init__()
        self.space = space
        self.leaves = action_leaves(space)
        self.heads = nn.ModuleList(make_part_head(leaf, dim, deviation) for leaf in self.leaves)

    def forward(self, features: Float[Tensor, "... dim"]) -> Composite:
        """Return the distribution over flat actions."""
        return Composite([head(features) for head in self.heads], self.leaves)

    def to_env(self, action: Tensor) -> Any:
        """Convert sampled actions to the environment's space: dicts and tuples of arrays."""
        parts = zip(self.heads, split_actions(self.leaves, action), strict=True)
        arrays: Iterator[Any] = (head.to_env(own) for head, own in parts)  # pyright: ignore[reportCallIssue]
        return _nest(self.space, arrays)


ActionHead = CategoricalHead | GaussianHead | CompositeHead


def make_action_head(space: spaces.Space, dim: int, deviation: Deviation = "constant") -> ActionHead:
    """Return the head that maps features of width `dim` to a distribution over `space`.

    Raises TypeError if the space is not supported, and ValueError if `deviation="state"` and no part of the
    space is a Box.
    """
    check_deviation(deviation)
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        try:
            head = CompositeHead(space, dim, deviation)
        except TypeError as error:
            raise TypeError(f"{error}; it is a part of {space}") from error
    else:
        head = make_part_head(space, dim, deviation)
    if deviation == "state" and not any(isinstance(leaf, spaces.Box) for leaf in action_leaves(space)):
        raise ValueError(
            f"deviation={deviation!r} needs an action space with a Box, not {space}; use deviation='constant'"
        )
    return head


def check_deviation(deviation: str) -> None:
    """Raise ValueError if `deviation` is not one of the choices of `Deviation`."""
    if deviation not in get_args(Deviation):
        raise ValueError(f"deviation={deviation!r}: choose from {', '.join(get_args(Deviation))}")


def is_discrete(head: nn.Module) -> bool:
    """Return True if all actions of an action head are discrete."""
    heads = head.heads if isinstance(head, CompositeHead) else [head]
    return all(isinstance(part, CategoricalHead) for part in heads)


def action_leaves(space: spaces.Space) -> list[spaces.Space]:
    """Return the parts of a nested space in order, without Dict and Tuple spaces.

    A space of another type is its own only part. Raises TypeError if a Dict or Tuple has no
    parts.
    """
    parts = [part for _, part in _parts(space)]
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return [space]
    if not parts:
        raise TypeError(f"action space {space} is not supported: it has no parts")
    return [leaf for part in parts for leaf in action_leaves(part)]


def select_row(actions: Any, row: int) -> Any:
    """Return one row of a batch of actions, which may be dicts and tuples of arrays."""
    if isinstance(actions, Mapping):
        return {key: select_row(part, row) for key, part in actions.items()}
    if isinstance(actions, tuple):
        return tuple(select_row(part, row) for part in actions)
    return actions[row]


def _parts(space: spaces.Space) -> list[tuple[Any, spaces.Space]]:
    """Return keys and parts of a Dict or Tuple space; the order of a Dict's keys does not change weights."""
    if isinstance(space, spaces.Dict):
        return sorted(space.spaces.items(), key=lambda item: str(item[0]))
    return list(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else []


def _nest(space: spaces.Space, values: Iterator[Any]) -> Any:
    """Arrange the values of `action_leaves(space)` in the structure of `space`."""
    if isinstance(space, spaces.Dict):
        return {key: _nest(part, values) for key, part in _parts(space)}
    if isinstance(space, spaces.Tuple):
        return tuple(_nest(part, values) for _, part in _parts(space))
    return next(values)

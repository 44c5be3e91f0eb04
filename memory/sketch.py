"""What a config would build, known before memory is taken for it: a model without its numbers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

Model = TypeVar("Model", bound=nn.Module)

_MOST_TENSORS = 2**14
_SPARE_TENSORS, _SPARE_BYTES = 64, 2**20
_OVERFLOWS = ("overflow", "out of range", "too large", "negative dimension")


class TooLargeError(ValueError):
    """A model would be larger than it may be; the message tells how much, and by what."""


class MisfitError(ValueError):
    """Weights are not of the model that they are said to be of; the message names the first that is not."""


def sketch(build: Callable[[], Model], most: int, most_tensors: int = _MOST_TENSORS) -> Model:
    """Return what `build` returns, its tensors on torch's device "meta", where they take no memory.

    Raises TooLargeError as soon as it has more than `most` bytes, naming the shape, or `most_tensors`
    tensors; and what `build` raises.
    """
    thread, left, places = threading.get_ident(), most, most_tensors

    def count(_: nn.Module, name: str, tensor: Any) -> None:
        nonlocal left, places
        if threading.get_ident() != thread or not isinstance(tensor, Tensor):
            return
        left, places = left - tensor.nbytes, places - 1
        if left < 0:
            raise TooLargeError(f"{name} of shape {_shape(tensor)} makes it more than {most:,} bytes")
        if places < 0:
            raise TooLargeError(f"it has more than {most_tensors:,} tensors")

    counting = (
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    )
    try:
        with torch.device("meta"), _countable():
            return build()
    finally:
        for hook in counting:
            hook.remove()


def fitted(build: Callable[[], Model], weights: Mapping[str, Tensor]) -> Model:
    """Return what `build` returns with these weights, built only if they fit: so large as they are, it is.

    Raises MisfitError; and what `build` raises.
    """
    wanted = sketch_for(build, [value.numel() for value in weights.values()]).state_dict()
    for name in sorted({*wanted, *weights}):
        ours, theirs = wanted.get(name), weights.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            raise MisfitError(f"{name} is {_shape(theirs)} there, and {_shape(ours)} by the config")
    model = build()
    model.load_state_dict(dict(weights))
    return model


def sketch_for(build: Callable[[], Model], sizes: Sequence[int]) -> Model:
    """Return `sketch` of what has about these weights, by their numbers. Raises MisfitError if far more."""
    most = sum(sizes) * 8  # nobody computes in longer numbers
    try:
        return sketch(build, 4 * most + _SPARE_BYTES, 4 * len(sizes) + _SPARE_TENSORS)
    except TooLargeError as error:
        raise MisfitError(f"by the config {error}") from error


def state_nbytes(model: Any, rows: int) -> int:
    """Return how many bytes a sketch's state of so many rows would have. Raises TooLargeError."""
    with _countable():
        return nbytes(model.initial_state(rows))


@contextlib.contextmanager
def _countable() -> Iterator[None]:
    """Raise TooLargeError in place of what torch says of sizes that are no numbers of its own."""
    try:
        yield
    except (RuntimeError, OverflowError, TypeError) as error:
        if not any(words in str(error).lower() for words in _OVERFLOWS):
            raise
        raise TooLargeError(f"sizes too large to be counted: {error}") from error


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Return how many bytes tensors have, or would have."""
    return sum(value.nbytes for value in tensors.values())


def _shape(tensor: Tensor | None) -> str:
    return "not" if tensor is None else str(list(tensor.shape))

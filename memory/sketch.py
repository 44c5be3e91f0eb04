"""Models on the meta device, built from a config without allocating memory for their weights."""

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
    """A model exceeds the memory limit; the message names the size and the tensor."""


class MisfitError(ValueError):
    """Weights do not match the model of their config; the message names the first mismatch."""


def sketch(build: Callable[[], Model], max_bytes: int, max_tensors: int = _MOST_TENSORS) -> Model:
    """Return the model of `build` on torch's device "meta", where tensors take no memory.

    Raises TooLargeError as soon as the model has more than `max_bytes` bytes, naming the shape, or more than
    `max_tensors` tensors. Errors of `build` propagate.
    """
    thread, bytes_left, tensors_left = threading.get_ident(), max_bytes, max_tensors

    def count(_: nn.Module, name: str, tensor: Any) -> None:
        nonlocal bytes_left, tensors_left
        if threading.get_ident() != thread or not isinstance(tensor, Tensor):
            return
        bytes_left, tensors_left = bytes_left - tensor.nbytes, tensors_left - 1
        if bytes_left < 0:
            raise TooLargeError(
                f"{name} of shape {_format_shape(tensor)} exceeds the limit of {max_bytes:,} bytes"
            )
        if tensors_left < 0:
            raise TooLargeError(f"the model has more than {max_tensors:,} tensors")

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


def build_matching(build: Callable[[], Model], weights: Mapping[str, Tensor]) -> Model:
    """Return the model of `build` with these weights, built only if the weights match its config.

    The model is therefore no larger than the weights. Raises MisfitError. Errors of `build` propagate.
    """
    expected = sketch_for(build, [value.numel() for value in weights.values()]).state_dict()
    for name in sorted({*expected, *weights}):
        config_value, weight = expected.get(name), weights.get(name)
        if config_value is None or weight is None or config_value.shape != weight.shape:
            raise MisfitError(
                f"{name}: weights have shape {_format_shape(weight)}, but the config has "
                f"{_format_shape(config_value)}"
            )
    model = build()
    model.load_state_dict(dict(weights))
    return model


def sketch_for(build: Callable[[], Model], sizes: Sequence[int]) -> Model:
    """Return a `sketch` limited to about these weight sizes. Raises MisfitError if it is far larger."""
    max_bytes = sum(sizes) * 8  # float64 is the widest dtype
    try:
        return sketch(build, 4 * max_bytes + _SPARE_BYTES, 4 * len(sizes) + _SPARE_TENSORS)
    except TooLargeError as error:
        raise MisfitError(f"the config does not match the weights: {error}") from error


def state_nbytes(model: Any, rows: int) -> int:
    """Return the size in bytes of a sketch's state with this many rows. Raises TooLargeError."""
    with _countable():
        return nbytes(model.initial_state(rows))


@contextlib.contextmanager
def _countable() -> Iterator[None]:
    """Convert torch's errors about sizes beyond its integer range to TooLargeError."""
    try:
        yield
    except (RuntimeError, OverflowError, TypeError) as error:
        if not any(words in str(error).lower() for words in _OVERFLOWS):
            raise
        raise TooLargeError(f"sizes are out of range: {error}") from error


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the total size of the tensors in bytes, also on the meta device."""
    return sum(value.nbytes for value in tensors.values())


def _format_shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(list(tensor.shape))

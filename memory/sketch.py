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
    """Error: a model exceeds the memory limit. The message names the limit and the tensor that exceeds it."""


class MisfitError(ValueError):
    """Error: weights do not match the model of their config. The message names the first mismatch."""


def sketch(build: Callable[[], Model], max_bytes: int, max_tensors: int = _MOST_TENSORS) -> Model:
    """Return the model that `build` creates, on torch's device "meta", where tensors take no memory.

    Raises TooLargeError as soon as the tensors of the model have more than `max_bytes` bytes in total, or as
    soon as there are more than `max_tensors` tensors. Errors of `build` propagate.
    """
    thread, bytes_left, tensors_left = threading.get_ident(), max_bytes, max_tensors

    def count(_: nn.Module, name: str, tensor: Any) -> None:
        nonlocal bytes_left, tensors_left
        if threading.get_ident() != thread or not isinstance(tensor, Tensor):
            return
        bytes_left, tensors_left = bytes_left - tensor.nbytes, tensors_left - 1
        if bytes_left < 0:
            raise TooLargeError(
                f"the total size of the model exceeds the limit of {max_bytes:,} bytes at tensor {name} of "
                f"shape {_format_shape(tensor)}"
            )
        if tensors_left < 0:
            raise TooLargeError(f"the model exceeds the limit of {max_tensors:,} tensors")

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
    """Create a model by `build()`, load `weights` into it, and return it.

    The function first compares the names and shapes of the weights with those of a model on the device
    "meta". It allocates the model only if they match, so a wrong config cannot exhaust the RAM. Raises
    MisfitError if they do not match. Errors of `build` propagate.
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
    """Return the model that `build` creates, on the device "meta".

    `sizes` are the numbers of elements of the stored weights. Raises MisfitError if the model is far larger
    than these weights.
    """
    max_bytes = sum(sizes) * 8  # float64 is the widest dtype
    try:
        return sketch(build, 4 * max_bytes + _SPARE_BYTES, 4 * len(sizes) + _SPARE_TENSORS)
    except TooLargeError as error:
        raise MisfitError(f"the config does not match the weights: {error}") from error


def state_nbytes(model: Any, rows: int) -> int:
    """Return the size in bytes of the initial state, at batch size `rows`, of a model without allocated
    weights.

    Raises TooLargeError if a size exceeds torch's integer range.
    """
    with _countable():
        return nbytes(model.initial_state(rows))


@contextlib.contextmanager
def _countable() -> Iterator[None]:
    """Raise TooLargeError in place of torch's own errors about sizes beyond torch's integer range."""
    try:
        yield
    except (RuntimeError, OverflowError, TypeError) as error:
        if not any(words in str(error).lower() for words in _OVERFLOWS):
            raise
        raise TooLargeError(f"the sizes of the model exceed the integer range of torch: {error}") from error


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the total size of the tensors in bytes. A meta tensor counts as if it were allocated."""
    return sum(value.nbytes for value in tensors.values())


def _format_shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(list(tensor.shape))

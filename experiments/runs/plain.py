"""Nested data as torch writes and reads it without pickling objects: arrays become tensors, and come back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ARRAY, _SCALAR = "numpy array", "numpy scalar"
_VALUES = (bool, bytes, complex, float, int, str, type(None))
_DTYPES = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def to_plain(value: Any, where: str = "state") -> Any:
    """Return the same with arrays as tensors.

    Raises TypeError, naming the place, on what is no tensor, array of numbers, or plain value, nor a dict,
    list or tuple of these.
    """
    kind = type(value)
    if kind in _VALUES or kind in (Tensor, nn.Parameter):
        return value
    if kind in (dict, OrderedDict):
        if _ARRAY in value or _SCALAR in value or not all(map(_is_key, value)):
            raise TypeError(f"{where} has the keys {list(value)!r:.100}: expected strings and numbers")
        return kind((key, to_plain(item, f"{where}[{key!r}]")) for key, item in value.items())
    if kind in (list, tuple):
        return kind(to_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if (kind is np.ndarray or isinstance(value, np.generic)) and _is_plain_array(value):
        return {_ARRAY if kind is np.ndarray else _SCALAR: torch.from_numpy(np.array(value, order="C"))}
    raise TypeError(f"{where} is a {kind.__module__}.{kind.__qualname__}, which is no array or plain value")


def from_plain(value: Any) -> Any:
    """Undo `to_plain`. Raises ValueError on what it never wrote: a dict, list or tuple that is in two places.

    Of such a few bytes tell a tree that no memory holds.
    """
    return _from_plain(value, set())


def _from_plain(value: Any, met: set[int]) -> Any:
    if isinstance(value, (dict, list, tuple)) and value:
        if id(value) in met:
            raise ValueError("something in it stands in two places")
        met.add(id(value))
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return value[_ARRAY].numpy()
        if value.keys() == {_SCALAR}:
            return value[_SCALAR].numpy()[()]
        return type(value)((key, _from_plain(item, met)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_from_plain(item, met) for item in value)
    return value


def _is_key(key: Any) -> bool:
    return all(map(_is_key, key)) if type(key) is tuple else type(key) in (bool, int, str)


def _is_plain_array(value: Any) -> bool:
    # Of another order of bytes than the machine's the name is the same, and the tensor would not be.
    return value.dtype.name in _DTYPES and value.dtype.isnative

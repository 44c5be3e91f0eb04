"""Conversion of nested data for `torch.save` without pickled objects: arrays become tensors and back."""

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
    """Return nested data with arrays converted to tensors.

    Raises TypeError, naming the position, on anything but tensors, numeric arrays, plain values, and dicts,
    lists and tuples of these.
    """
    kind = type(value)
    if kind in _VALUES or kind in (Tensor, nn.Parameter):
        return value
    if kind in (dict, OrderedDict):
        if _ARRAY in value or _SCALAR in value or not all(map(_is_key, value)):
            raise TypeError(
                f"{where} has the keys {list(value)!r:.100}: each must be a string, an integer or a tuple, "
                f"and neither {_ARRAY!r} nor {_SCALAR!r}"
            )
        return kind((key, to_plain(item, f"{where}[{key!r}]")) for key, item in value.items())
    if kind in (list, tuple):
        return kind(to_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if (kind is np.ndarray or isinstance(value, np.generic)) and _is_plain_array(value):
        return {_ARRAY if kind is np.ndarray else _SCALAR: torch.from_numpy(np.array(value, order="C"))}
    raise TypeError(f"{where} is a {kind.__module__}.{kind.__qualname__}; expected an array or plain value")


def from_plain(value: Any) -> Any:
    """Restore data that `to_plain` converted. Raises ValueError if a container occurs in two places.

    `to_plain` never writes shared containers. With shared containers a small file could need more memory than
    the machine has.
    """
    return _from_plain(value, set())


def _from_plain(value: Any, visited_ids: set[int]) -> Any:
    if isinstance(value, (dict, list, tuple)) and value:
        if id(value) in visited_ids:
            raise ValueError(
                "the data refers to the same dict, list or tuple in two places; put a copy in one of them"
            )
        visited_ids.add(id(value))
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return value[_ARRAY].numpy()
        if value.keys() == {_SCALAR}:
            return value[_SCALAR].numpy()[()]
        return type(value)((key, _from_plain(item, visited_ids)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_from_plain(item, visited_ids) for item in value)
    return value


def _is_key(key: Any) -> bool:
    return all(map(_is_key, key)) if type(key) is tuple else type(key) in (bool, int, str)


def _is_plain_array(value: Any) -> bool:
    # The dtype name does not include the byte order, and tensors support only the native one.
    return value.dtype.name in _DTYPES and value.dtype.isnative

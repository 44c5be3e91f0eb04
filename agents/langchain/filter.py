"""Whether a value meets a filter of LangGraph's store: equality by key, or `$eq $ne $gt $gte $lt $lte`."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

_ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_OPERATORS = ("$eq", "$ne", *_ORDER)


def meets(value: Any, filter: Mapping[str, Any] | None) -> bool:
    """Return whether the value has what the filter asks for; a key that is missing counts as None.

    Order holds between numbers, and between strings; where there is none, nothing is met. Raises ValueError
    on an unknown operator.
    """
    return all(_equal(value.get(key), wanted) for key, wanted in (filter or {}).items())


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if any(str(key).startswith("$") for key in wanted):
            return all(_compare(value, name, bound) for name, bound in wanted.items())
        return isinstance(value, Mapping) and meets(value, wanted)
    if isinstance(wanted, list | tuple):
        return (
            isinstance(value, list | tuple) and len(value) == len(wanted) and all(map(_equal, value, wanted))
        )
    return value == wanted


def _compare(value: Any, name: str, bound: Any) -> bool:
    if name not in _OPERATORS:
        raise ValueError(f"operator {name!r} in a filter; choose from {', '.join(_OPERATORS)}")
    if name == "$eq":
        return value == bound
    if name == "$ne":
        return value != bound
    return _comparable(value, bound) and _ORDER[name](value, bound)


def _comparable(value: Any, bound: Any) -> bool:
    both = (value, bound)
    return all(isinstance(one, int | float) for one in both) or all(isinstance(one, str) for one in both)

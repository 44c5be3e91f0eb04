"""Filters of LangGraph's store: equality by key, and the operators `$eq $ne $gt $gte $lt $lte`."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

_ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_OPERATORS = ("$eq", "$ne", *_ORDER)


def matches_filter(value: Any, filter: Mapping[str, Any] | None) -> bool:
    """Return True if a value matches a filter; a missing key counts as None.

    The operators `$gt $gte $lt $lte` compare a number with a number, or a string with a string. For other
    types the result is False. Raises ValueError if an operator is unknown.
    """
    return all(_matches(value.get(key), expected) for key, expected in (filter or {}).items())


def _matches(value: Any, expected: Any) -> bool:
    if isinstance(expected, Mapping):
        if any(str(key).startswith("$") for key in expected):
            return all(_compare(value, name, bound) for name, bound in expected.items())
        return isinstance(value, Mapping) and matches_filter(value, expected)
    if isinstance(expected, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(expected)
            and all(map(_matches, value, expected))
        )
    return value == expected


def _compare(value: Any, name: str, bound: Any) -> bool:
    if name not in _OPERATORS:
        raise ValueError(f"unknown operator {name!r} in a filter; choose from {', '.join(_OPERATORS)}")
    if name == "$eq":
        return value == bound
    if name == "$ne":
        return value != bound
    return _comparable(value, bound) and _ORDER[name](value, bound)


def _comparable(value: Any, bound: Any) -> bool:
    both = (value, bound)
    return all(isinstance(one, int | float) for one in both) or all(isinstance(one, str) for one in both)

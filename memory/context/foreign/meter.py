"""Step counter of a rendering: each operation of a chat template is paid for before it runs.

An operation costs one step, and one more for every 64 units that it reads or writes. A character is one unit,
an element of a list or dict is 16. So the steps bound both the time and the memory of a rendering.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.utils import Namespace

NODE = 16
"""Units of an element of a container."""
MAX_DEPTH = 100
"""Nesting of values in a template. Messages and schemas of tools have fewer than 20 levels."""
MAX_BITS = 4096
"""Bits of an integer in a template."""
_UNITS_PER_STEP = 64
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


class TemplateLimitError(ValueError):
    """A chat template needs too much time or memory; the message names the limit."""


class Meter:
    """Remaining steps of one rendering."""

    def __init__(self, steps: int) -> None:
        self.steps = self.remaining = steps

    def spend(self, units: int = 0) -> None:
        """Pay for one operation on this many units. Raises TemplateLimitError if no step remains."""
        self.remaining -= 1 + units // _UNITS_PER_STEP
        if self.remaining < 0:
            raise TemplateLimitError(f"it takes more than {self.steps:,} steps for this conversation")

    @property
    def units(self) -> int:
        """Units that the remaining steps pay for."""
        return _UNITS_PER_STEP * self.remaining


_meter: ContextVar[Meter] = ContextVar("meter")


@contextmanager
def metering(steps: int) -> Iterator[Meter]:
    """Count the steps of the templates rendered in this scope by this thread."""
    meter = Meter(steps)
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def spend(units: int = 0) -> None:
    """Pay for one operation of the running template. Raises LookupError if no template runs."""
    _meter.get().spend(units)


def width(value: Any) -> int:
    """Return the units of a value without those of its elements' contents."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, (list, tuple, dict, range, *_VIEWS)):
        return NODE * len(value)
    return 1


def size(*values: Any) -> int:
    """Return the units of values with all their contents. Raises TemplateLimitError if they are too many."""
    return sum(len(value) if type(value) is str else measure(value)[0] for value in values)


def measure(value: Any) -> tuple[int, int]:
    """Return the units of a value with all its contents, and the depth of its nesting.

    A value that occurs several times counts each time, as it does in text. Raises TemplateLimitError if the
    value has more units than the remaining steps pay for, is nested too deeply, or has a huge number.
    """
    most, total, depth = _meter.get().units, 0, 0
    level = [value]
    while level:
        if depth > MAX_DEPTH:
            raise TemplateLimitError(f"it nests values more than {MAX_DEPTH} levels deep")
        inner: list[Any] = []
        for part in level:
            total += width(part)
            if type(part) is int and part.bit_length() > MAX_BITS:
                raise TemplateLimitError(f"it computes a number of more than {MAX_BITS} bits")
            parts = _elements(part)
            if parts is not None:
                total += NODE * len(parts)
                if total > most:
                    _meter.get().spend(total)
                inner.extend(parts)
        level, depth = inner, depth + 1
    return total, depth


def _elements(value: Any) -> Any:
    """Return the elements of a container, None for other values."""
    if isinstance(value, str) or value is None:
        return None
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, (list, tuple, *_VIEWS)) else None

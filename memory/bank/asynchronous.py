"""Asynchronous forms of methods: each runs the method in a worker thread.

The event loop then waits neither for a file nor for an embedding model. A cancelled call does not stop the
method, which ends in its thread.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from functools import wraps
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar

_T = TypeVar("_T")
_P = ParamSpec("_P")


def in_thread(method: Callable[_P, _T]) -> Callable[_P, CoroutineType[Any, Any, _T]]:
    """Return the asynchronous form of a method. It calls the method by name, so a subclass may replace it."""

    @wraps(method)
    async def run(*arguments: _P.args, **options: _P.kwargs) -> _T:
        return await asyncio.to_thread(_find(method, arguments), *arguments[1:], **options)

    return _describe(run, method)


def iterate_in_thread(
    count: int,
) -> Callable[[Callable[_P, Iterator[_T]]], Callable[_P, AsyncIterator[_T]]]:
    """Return a function that makes the asynchronous form of a generator method.

    A thread computes `count` items at a time.
    """

    def convert(method: Callable[_P, Iterator[_T]]) -> Callable[_P, AsyncIterator[_T]]:
        @wraps(method)
        async def run(*arguments: _P.args, **options: _P.kwargs) -> AsyncIterator[_T]:
            items = _find(method, arguments)(*arguments[1:], **options)
            while batch := await asyncio.to_thread(lambda: list(itertools.islice(items, count))):
                for item in batch:
                    yield item

        return _describe(run, method)

    return convert


def _find(method: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    return getattr(arguments[0], method.__name__)


def _describe(run: Any, method: Callable[..., Any]) -> Any:
    run.__name__ = f"a{method.__name__}"
    run.__qualname__ = f"{method.__qualname__.removesuffix(method.__name__)}{run.__name__}"
    run.__doc__ = f"Asynchronous form; arguments and errors are those of `{method.__name__}`."
    return run

"""Errors of libraries in Rust. A panic of such a library is no `Exception`, so no handler of errors sees it.

A regular expression in tokenizer.json makes the library tokenizers panic on some texts only. The trial of a
model cannot find them all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_METHODS = (
    "_decode",
    "_encode_plus",
    "_encode_without_added_tokens",
    "convert_tokens_to_string",
    "num_special_tokens_to_add",
)
"""Methods through which transformers calls the library tokenizers with a text or with tokens."""


@contextmanager
def no_panics(source: os.PathLike[str] | str) -> Iterator[None]:
    """Turn a panic of Rust code inside the `with` block into a ValueError that names the model."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # each library in Rust has a class of this name
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the tokenizer of the model at {str(source)!r} fails: {reason:.300}; use another model"
        ) from None


def guard_tokenizer(tokenizer: Any, source: os.PathLike[str] | str) -> None:
    """Let the methods of a tokenizer of transformers raise ValueError where the library tokenizers panics."""
    for name in _METHODS:
        if (method := getattr(tokenizer, name, None)) is not None:
            setattr(tokenizer, name, functools.partial(_call, method, str(source)))


def _call(method: Callable[..., Any], source: str, *values: Any, **options: Any) -> Any:
    with no_panics(source):
        return method(*values, **options)

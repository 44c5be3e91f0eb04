"""Errors of tokenizers: panics of the library in Rust, and tokens for which the model has no embedding.

A panic is no `Exception`, so no handler of errors sees it. A regular expression in tokenizer.json makes the
library tokenizers panic on some texts only. The trial of a model cannot find them all. A token without an
embedding is an IndexError of torch on a CPU. On a GPU it ends all further use of the device.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
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


def guard_tokenizer(tokenizer: Any, source: os.PathLike[str] | str, num_embeddings: int) -> None:
    """Let the methods of a tokenizer of transformers raise ValueError instead of panics and strange tokens.

    A strange token is a number outside the `num_embeddings` embeddings of the model.
    """
    for name in _METHODS:
        if (method := getattr(tokenizer, name, None)) is not None:
            setattr(tokenizer, name, functools.partial(_call, method, str(source), num_embeddings))


def _call(method: Callable[..., Any], source: str, num_embeddings: int, *values: Any, **options: Any) -> Any:
    with no_panics(source):
        result = method(*values, **options)
    if isinstance(result, Mapping) and "input_ids" in result:
        _check_tokens(result["input_ids"], source, num_embeddings)
    return result


def _check_tokens(ids: Any, source: str, num_embeddings: int) -> None:
    """Raise ValueError if the model has no embedding for a token; `ids` are lists or an array of tokens."""
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    for row in values if values and isinstance(values[0], list) else [values]:
        if row and (min(row) < 0 or max(row) >= num_embeddings):
            token = min(row) if min(row) < 0 else max(row)
            raise ValueError(
                f"the tokenizer of the model at {source!r} returns token {token}, but the model has "
                f"{num_embeddings:,} embeddings; use the tokenizer of this model"
            )

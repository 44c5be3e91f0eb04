"""Exact search for the table rows with the largest dot products with a query.

NumPy arrays are searched with NumPy, without an import of torch. Torch would be no faster, because memory
bandwidth limits the speed (`experiments/bench/bank.md`). Tensors are searched with torch, or with Triton on a
GPU. Results have no gradients.

Letters: Q queries, N rows of the table, R rows to score, D width, K results.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    from torch import Tensor

    from scrubjay.kernels.dispatch import Implementation

Array = TypeVar("Array", np.ndarray, "Tensor")


class Nearest(NamedTuple, Generic[Array]):
    """Results of a search, best first."""

    scores: Float[Array, "Q K"]
    """Float32 scores, best first. Unused entries after the last result are -inf."""
    rows: Int[Array, "Q K"]
    """Row numbers of the results. Unused entries after the last result are -1."""


def nearest(
    query: Float[Array, "Q D"],
    keys: Float[Array, "N D"],
    count: int,
    *,
    norms: Float[Array, "N"] | None = None,
    row_mask: Bool[Array, "N"] | None = None,
    implementation: Implementation = "auto",
) -> Nearest[Array]:
    """Return for each query the `count` rows of `keys` with the largest scores; ties keep the table order.

    The score of a row is its dot product with the query, divided by the row's entry of `norms` if `norms` is
    passed. Rows that `row_mask` excludes may hold any values. Rows with a score of NaN or -inf are never
    results. Tensors may be float16, bfloat16 or float32, arrays must be float32. Sums are float32.

    Args:
        query: Q vectors.
        keys: Table of N rows.
        count: Number of results K, at least 1.
        norms: Norms of the rows of `keys`; None for no division.
        row_mask: True for rows that may be returned; all by default.
        implementation: An implementation of `scrubjay.kernels.dispatch` for tensors; only "auto" for arrays.

    Raises:
        ValueError: On shapes that do not match, on `count` < 1 and on an unavailable implementation.
        TypeError: On other dtypes.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    _check(query, keys)
    for name, values in (("norms", norms), ("row_mask", row_mask)):
        if values is not None and values.shape != keys.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}; expected ({keys.shape[0]},), one per row of keys"
            )
    if row_mask is not None and "bool" not in str(row_mask.dtype):
        raise TypeError(f"row_mask has dtype {row_mask.dtype}; expected bool")
    return _module_for(query).nearest(query, keys, count, norms, row_mask, implementation)


def row_scores(
    query: Float[Array, "Q D"],
    keys: Float[Array, "N D"],
    rows: Int[Array, "R"] | None = None,
    *,
    implementation: Implementation = "auto",
) -> Float[Array, "Q R"]:
    """Return the float32 dot products of the queries with rows of a table.

    Args:
        query: Q vectors.
        keys: Table of N rows.
        rows: Indices of R rows; by default all rows.
        implementation: An implementation of `scrubjay.kernels.dispatch` for tensors; only "auto" for arrays.

    Raises the errors of `nearest`.

    Raises:
        IndexError: On a row outside the table, but not with "triton".
    """
    _check(query, keys)
    if rows is not None and (rows.ndim != 1 or "int" not in str(rows.dtype)):
        raise ValueError(
            f"rows has shape {tuple(rows.shape)} and dtype {rows.dtype}; expected one dimension of integers"
        )
    return _module_for(query).row_scores(query, keys, rows, implementation)


def _module_for(query: Any) -> Any:
    """Return the module for the type of `query`. Torch is imported only for tensors."""
    kind = "arrays" if isinstance(query, np.ndarray) else "tensors"
    return importlib.import_module(f"scrubjay.kernels.search.{kind}")


def _check(query: Any, keys: Any) -> None:
    if query.ndim != 2 or keys.ndim != 2 or query.shape[1] != keys.shape[1]:
        raise ValueError(
            f"query has shape {tuple(query.shape)}, keys {tuple(keys.shape)}; "
            "expected [queries, width] and [rows, width]"
        )

"""The rows of a table that score best against a query, by an exact scan: recall's first stage.

Arrays of numpy are scanned by numpy, without importing torch: the products wait for memory, and torch's are
no faster (`experiments/bench/bank.md`). Tensors are scanned by torch, on a GPU by Triton. These are searches,
not layers: no gradient flows.

Letters: Q queries, N rows, R rows listed, D width, K rows found.
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
    """What a scan found, best first."""

    scores: Float[Array, "Q K"]
    """Scores in float32, -inf where there is no further row."""
    rows: Int[Array, "Q K"]
    """Numbers of the rows, -1 where there is no further one."""


def nearest(
    query: Float[Array, "Q D"],
    keys: Float[Array, "N D"],
    count: int,
    *,
    norms: Float[Array, "N"] | None = None,
    allowed: Bool[Array, "N"] | None = None,
    implementation: Implementation = "auto",
) -> Nearest[Array]:
    """Return the `count` rows of `keys` of the largest products with the query, earlier equals first.

    Scores are divided by `norms`, if any. Rows that are not `allowed` may hold anything; one whose score is
    NaN or -inf is not found. Tensors are float16, bfloat16 or float32, arrays float32; scores are summed in
    float32.

    Args:
        query: Q vectors.
        keys: The table, N rows.
        count: K, at least 1.
        norms: Of the rows, not of queries.
        allowed: Which rows may be found; all by default.
        implementation: For tensors; "auto" alone for arrays.

    `implementation` is one of `scrubjay.kernels.dispatch`, for tensors; arrays have one of their own, "auto"
    alone. Raises ValueError on shapes that do not fit, `count` < 1 and an implementation that cannot run,
    TypeError on other dtypes.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    _check(query, keys)
    for name, given in (("norms", norms), ("allowed", allowed)):
        if given is not None and given.shape != keys.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}; it must have {keys.shape[0]}, one a row of keys"
            )
    if allowed is not None and "bool" not in str(allowed.dtype):
        raise TypeError(f"allowed has dtype {allowed.dtype}; it must be bool")
    return _home(query).nearest(query, keys, count, norms, allowed, implementation)


def row_scores(
    query: Float[Array, "Q D"],
    keys: Float[Array, "N D"],
    rows: Int[Array, "R"] | None = None,
    *,
    implementation: Implementation = "auto",
) -> Float[Array, "Q R"]:
    """Return the products of the queries with the listed rows of `keys`, by default all, in float32.

    Raises as `nearest` does, and IndexError on a row that is not there, except from Triton.
    """
    _check(query, keys)
    if rows is not None and (rows.ndim != 1 or "int" not in str(rows.dtype)):
        raise ValueError(f"rows has shape {tuple(rows.shape)} and dtype {rows.dtype}; list whole numbers")
    return _home(query).row_scores(query, keys, rows, implementation)


def _home(query: Any) -> Any:
    """Return the module that scans what is like `query`; torch only for those who have tensors."""
    kind = "arrays" if isinstance(query, np.ndarray) else "tensors"
    return importlib.import_module(f"scrubjay.kernels.search.{kind}")


def _check(query: Any, keys: Any) -> None:
    if query.ndim != 2 or keys.ndim != 2 or query.shape[1] != keys.shape[1]:
        raise ValueError(
            f"query has shape {tuple(query.shape)}, keys {tuple(keys.shape)}; they must be [Q, D] and [N, D]"
        )

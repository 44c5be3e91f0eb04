"""`nearest` and `row_scores` on numpy arrays: the fast CPU path."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from scrubjay.kernels.search.op import Nearest
from scrubjay.kernels.select import best


def nearest(
    query: np.ndarray,
    keys: np.ndarray,
    count: int,
    norms: np.ndarray | None,
    row_mask: np.ndarray | None,
    implementation: str,
) -> Nearest[np.ndarray]:
    """Run `kernels.nearest` on arrays. Raises the errors of `kernels.nearest`.

    Args: those of `kernels.nearest`.
    """
    _check(query, keys, implementation)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scores = _products(query, keys) if norms is None else _products(query, keys) / norms
    if row_mask is not None:
        scores[:, ~row_mask] = -np.inf
    return _select(scores, count)


def row_scores(
    query: np.ndarray, keys: np.ndarray, rows: np.ndarray | None, implementation: str
) -> np.ndarray:
    """Run `kernels.row_scores` on arrays. Raises the errors of `kernels.row_scores`."""
    _check(query, keys, implementation)
    return _products(query, keys if rows is None else keys[rows])


def _select(scores: Float[np.ndarray, "Q N"], count: int) -> Nearest[np.ndarray]:
    """Return the rows with the best scores. Overwrites `scores`."""
    scores[np.isnan(scores)] = -np.inf
    rows = best(scores, count)
    best_scores = np.take_along_axis(scores, rows, axis=1)
    missing = ((0, 0), (0, count - rows.shape[1]))
    return Nearest(
        np.pad(best_scores, missing, constant_values=-np.inf),
        np.pad(np.where(best_scores > -np.inf, rows, -1), missing, constant_values=-1),
    )


def _products(query: np.ndarray, keys: np.ndarray) -> np.ndarray:
    # A single query is the usual case. A matrix-vector product reads memory once and packs nothing.
    return (keys @ query[0])[None] if len(query) == 1 else query @ keys.T


def _check(query: np.ndarray, keys: np.ndarray, implementation: str) -> None:
    if query.dtype != np.float32 or keys.dtype != np.float32:
        raise TypeError(f"query has dtype {query.dtype} and keys {keys.dtype}; arrays must be float32")
    if implementation != "auto":
        raise ValueError(f"implementation={implementation!r}: numpy arrays support only 'auto'")

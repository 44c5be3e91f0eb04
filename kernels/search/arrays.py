"""The scan of `nearest` over arrays of numpy: the fast CPU path."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels.search.op import Nearest


def nearest(
    query: np.ndarray,
    keys: np.ndarray,
    count: int,
    norms: np.ndarray | None,
    allowed: np.ndarray | None,
    implementation: str,
) -> Nearest[np.ndarray]:
    """Run `kernels.nearest` on arrays. Raises TypeError and ValueError as that does.

    Args: those of `kernels.nearest`.
    """
    _check(query, keys, implementation)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scores = _products(query, keys) if norms is None else _products(query, keys) / norms
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return best(scores, count)


def row_scores(query: np.ndarray, keys: np.ndarray, rows: np.ndarray, implementation: str) -> np.ndarray:
    """Run `kernels.row_scores` on arrays. Raises TypeError and ValueError as that does."""
    _check(query, keys, implementation)
    return _products(query, keys[rows])


def best(scores: Float[np.ndarray, "Q N"], count: int) -> Nearest[np.ndarray]:
    """Return the best by their scores, which it may overwrite."""
    scores[np.isnan(scores)] = -np.inf
    found = Nearest(
        np.full((len(scores), count), -np.inf, dtype=np.float32),
        np.full((len(scores), count), -1, dtype=np.int64),
    )
    for q, of_query in enumerate(scores):
        rows = largest(of_query, count)
        rows = rows[of_query[rows] > -np.inf]
        found.scores[q, : len(rows)], found.rows[q, : len(rows)] = of_query[rows], rows
    return found


def largest(scores: Float[np.ndarray, "N"], count: int) -> Int[np.ndarray, "K"]:
    """Return where the largest scores are, best first, the earlier of equals first; no score may be NaN."""
    if count < len(scores):
        bound = np.partition(scores, len(scores) - count)[len(scores) - count]
        chosen = np.flatnonzero(scores >= bound)
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")][:count]


def _products(query: np.ndarray, keys: np.ndarray) -> np.ndarray:
    # One query, the usual case, is a product with a vector, which reads memory once and packs nothing.
    return (keys @ query[0])[None] if len(query) == 1 else query @ keys.T


def _check(query: np.ndarray, keys: np.ndarray, implementation: str) -> None:
    if query.dtype != np.float32 or keys.dtype != np.float32:
        raise TypeError(f"query has dtype {query.dtype}, keys {keys.dtype}; arrays must be float32")
    if implementation != "auto":
        raise ValueError(f"implementation={implementation!r} is for tensors; arrays of numpy have 'auto'")

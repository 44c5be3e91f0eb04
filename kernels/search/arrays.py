"""The scan of `nearest` over arrays of numpy: the fast CPU path."""

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
    return _found(scores, count)


def row_scores(
    query: np.ndarray, keys: np.ndarray, rows: np.ndarray | None, implementation: str
) -> np.ndarray:
    """Run `kernels.row_scores` on arrays. Raises TypeError and ValueError as that does."""
    _check(query, keys, implementation)
    return _products(query, keys if rows is None else keys[rows])


def _found(scores: Float[np.ndarray, "Q N"], count: int) -> Nearest[np.ndarray]:
    """Return the best by their scores, which it may overwrite."""
    scores[np.isnan(scores)] = -np.inf
    rows = best(scores, count)
    of_rows = np.take_along_axis(scores, rows, axis=1)
    missing = ((0, 0), (0, count - rows.shape[1]))
    return Nearest(
        np.pad(of_rows, missing, constant_values=-np.inf),
        np.pad(np.where(of_rows > -np.inf, rows, -1), missing, constant_values=-1),
    )


def _products(query: np.ndarray, keys: np.ndarray) -> np.ndarray:
    # One query, the usual case, is a product with a vector, which reads memory once and packs nothing.
    return (keys @ query[0])[None] if len(query) == 1 else query @ keys.T


def _check(query: np.ndarray, keys: np.ndarray, implementation: str) -> None:
    if query.dtype != np.float32 or keys.dtype != np.float32:
        raise TypeError(f"query has dtype {query.dtype}, keys {keys.dtype}; arrays must be float32")
    if implementation != "auto":
        raise ValueError(f"implementation={implementation!r} is for tensors; arrays of numpy have 'auto'")

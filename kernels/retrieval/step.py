"""Top-k selection of chunks in one step of an agent: a fast path of `choose_chunks`.

The general path takes four times as long for so few numbers. Most of the time is spent by Python and by the
start of operations, so numpy does what takes torch longer. Letters as in `chunk_retrieval`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import any_dual, prefers_torch
from scrubjay.kernels.retrieval.selection import Selection
from scrubjay.kernels.select import FEW, best

# Largest number of products for which numpy is faster than torch.
_FEW_PRODUCTS = 1 << 13

_DTYPES = (torch.float32, torch.float64)


def choose(
    valid: Tensor,
    top_k: int,
    scores: Tensor | None,
    query: Tensor | None,
    summaries: Tensor | None,
    scale: float | None,
    largest_entry: float | None,
) -> Selection | None:
    """Run `kernels.choose_chunks` for one step of an agent on the CPU: one query per row, without gradients.

    This takes a fourth of the time of the general path, since so few numbers are selected mostly by Python.
    Returns None if the arguments are not those of a step, or if they are not valid.

    Args: those of `kernels.choose_chunks`.
    """
    if not prefers_torch() or torch.is_autocast_enabled("cpu"):
        return None
    queries = query if scores is None else scores
    items = summaries if scores is None else scores
    if not (isinstance(queries, Tensor) and isinstance(items, Tensor)) or len(shape := queries.shape) != 4:
        return None
    num_chunks = items.shape[1 if scores is None else 3]
    is_step = shape[1] == 1 and queries.is_cpu and queries.dtype in _DTYPES and top_k > 0 < num_chunks
    fits = is_step and valid.dtype == torch.bool and valid.shape == (shape[0], 1, num_chunks)
    if not fits or queries.requires_grad or items.requires_grad:
        return None
    if torch._C._are_functorch_transforms_active() or any_dual(queries, items):
        return None
    if scores is not None:
        fits = query is None and summaries is None
        return _select_scores_in_step(scores, valid, top_k) if fits else None
    assert query is not None
    assert summaries is not None
    if (
        shape[2] != 1
        or summaries.shape != (shape[0], num_chunks, 1, shape[3])
        or summaries.dtype != query.dtype
    ):
        return None
    factor = shape[3] ** -0.5 if scale is None else scale
    return _select_in_step(query if factor == 1 else query * factor, summaries, valid, top_k, largest_entry)


def _select_scores_in_step(
    scores: Float[Tensor, "B 1 S M"], valid: Bool[Tensor, "B 1 M"], top_k: int
) -> Selection:
    """Select chunks by `scores`."""
    mask: Any = valid.numpy()
    mask = None if np.logical_and.reduce(mask, axis=None) else mask[:, :, None]
    if scores.numel() > FEW:
        ranking = torch.nan_to_num(scores, nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        if mask is not None:
            ranking = torch.where(valid[:, :, None], ranking, -math.inf)
        chunks = best(ranking, top_k)
        kept_scores = ranking.gather(3, chunks)
        return chunks.masked_fill_(kept_scores == -math.inf, -1), kept_scores
    # The maximum that ignores NaN. Numpy takes two thirds of the time for so few scores.
    ranking = np.fmax(scores.numpy(), -math.inf)
    if mask is not None:
        ranking = np.where(mask, ranking, ranking.dtype.type(-math.inf))
    shape = (*ranking.shape[:3], -1)
    ranking = ranking.reshape(-1, ranking.shape[3])
    chunks = (-ranking).argsort(axis=1, kind="stable")[:, :top_k]
    kept_scores = ranking[np.arange(len(ranking))[:, None], chunks]
    chunks[kept_scores == -math.inf] = -1
    return torch.from_numpy(chunks.reshape(shape)), torch.from_numpy(kept_scores.reshape(shape))


def _select_in_step(
    query: Float[Tensor, "B 1 1 Ds"],
    summaries: Float[Tensor, "B M 1 Ds"],
    valid: Bool[Tensor, "B 1 M"],
    top_k: int,
    largest_entry: float | None,
) -> Selection:
    """Select chunks by their summaries. NaN scores rank first, as in the general path."""
    mask: Any = valid.numpy()[:, 0]
    mask = None if np.logical_and.reduce(mask, axis=None) else mask
    queries, items = query.numpy()[:, 0, 0], summaries.numpy()[:, :, 0]
    rows, num_chunks = np.arange(len(items))[:, None], items.shape[1]
    if queries.size * num_chunks <= _FEW_PRODUCTS:
        scores = _score_exactly(queries, items, mask)
        chunks = _sort_stably(scores)[:, :top_k]
        scores = scores[rows, chunks]
    else:
        # A row-matrix product is ten times as fast as a matrix-column product.
        products = torch.bmm(query[:, 0], summaries[:, :, 0].mT)
        products = (products if mask is None else torch.where(valid, products, -math.inf))[:, 0]
        values, columns = products.topk(min(top_k + 1, num_chunks), dim=1)
        scores, chunks = values.numpy(), columns.numpy()
        if num_chunks > top_k:
            largest = _find_largest_entry(summaries) if largest_entry is None else largest_entry
            close = _find_ties(queries, scores, largest)
            scores, chunks = scores[:, :-1], chunks[:, :-1]
            if len(close):
                exact = _score_exactly(queries[close], items[close], None if mask is None else mask[close])
                order = _sort_stably(exact)[:, :top_k]
                chunks[close], scores[close] = order, products.numpy()[close[:, None], order]
    if mask is not None:
        chunks[scores == -math.inf] = -1
    # Indexing in numpy takes a tenth of the time.
    return torch.from_numpy(chunks[:, None, None]), torch.from_numpy(scores[:, None, None])


def _find_ties(
    query: Float[np.ndarray, "B Ds"], scores: Float[np.ndarray, "B K_and_1"], largest_entry: float
) -> Int[np.ndarray, " some"]:
    """Return the rows whose last selected and first dropped chunk differ by no more than rounding.

    One large product may round the scores of two equal summaries differently. `scores` are those of the
    selected chunks and of the first dropped one.
    """
    rounding = 2 * query.shape[1] * np.finfo(query.dtype).eps * largest_entry
    with np.errstate(over="ignore", invalid="ignore"):
        near = scores[:, -2] - scores[:, -1] <= np.abs(query).sum(axis=1) * rounding
    return (near & (scores[:, -1] > -math.inf)).nonzero()[0]


def _find_largest_entry(summaries: Tensor) -> float:
    """Return the largest absolute value of an entry that is not NaN."""
    lowest, highest = (float(value) for value in torch.aminmax(summaries))
    return float(summaries.nan_to_num(0.0).abs().amax()) if math.isnan(lowest) else max(highest, -lowest)


def _score_exactly(
    query: Float[np.ndarray, "B Ds"],
    summaries: Float[np.ndarray, "B M Ds"],
    mask: Bool[np.ndarray, "B M"] | None,
) -> Float[np.ndarray, "B M"]:
    """Return scores of summaries, rounded such that equal summaries have equal scores."""
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (summaries * query[:, None]).sum(axis=-1)
    return scores if mask is None else np.where(mask, scores, scores.dtype.type(-math.inf))


def _sort_stably(scores: Float[np.ndarray, "B M"]) -> Int[np.ndarray, "B M"]:
    """Return the order of scores: NaN first, then descending, equal scores in order of index."""
    ascending = np.where(np.isnan(scores), scores.dtype.type(-math.inf), -scores)
    return ascending.argsort(axis=1, kind="stable")

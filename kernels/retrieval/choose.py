"""Top-k selection of chunks for each query, the first half of chunk retrieval.

NumPy inputs are processed by NumPy, without importing torch. So code without torch, such as a bank with
external embeddings, selects chunks by the same rules as policy layers. Letters as in `chunk_retrieval`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scrubjay.kernels.select import Array, best

if TYPE_CHECKING:
    from scrubjay.kernels.dispatch import Implementation


class SelectedChunks(NamedTuple, Generic[Array]):
    """Selected chunks: always-kept chunks first, then all others by descending score."""

    chunks: Int[Array, "B T S K"]
    """Chunk indices; -1 for unused slots."""
    scores: Float[Array, "B T S K"]
    """Scores of the chunks; -inf for unused slots. Gradients flow to the source of the scores."""
    lse: Float[Array, "B T S"] | None = None
    """Logsumexp of the scores; -inf if no chunk is selected; None unless `return_lse` is set."""


def choose_chunks(
    valid: Int[Array, "B T"] | Bool[Array, "B T M"],
    *,
    top_k: int,
    scores: Float[Array, "B T S M"] | None = None,
    summary_query: Float[Array, "B T S Ds"] | None = None,
    summaries: Float[Array, "B M Gs Ds"] | None = None,
    summary_scale: float | None = None,
    num_sink_chunks: int = 0,
    num_local_chunks: int = 0,
    largest_entry: float | None = None,
    return_lse: bool = False,
    implementation: Implementation = "auto",
) -> SelectedChunks[Array]:
    """Select the `top_k` chunks with the best scores for each query, or all chunks if there are fewer.

    Scores are passed in, or computed as `summary_query · summaries * summary_scale`. Ties go to the earlier
    chunk. The first `num_sink_chunks` and the last `num_local_chunks` readable chunks are always kept and
    count toward `top_k`. NaN in `scores` counts as -inf; such chunks are kept only as sink or local chunks.
    `attend_chosen` attends to the selected chunks.

    Args:
        valid: Number of leading chunks that a query may read, or a mask of readable chunks.
        top_k: Number of chunks to keep, at least 1.
        scores: Chunk scores for S heads; None to compute them.
        summary_query: Queries to the summaries, S heads; None if scores are passed.
        summaries: Summaries of the chunks; None if scores are passed.
        summary_scale: Scale of the scores, Ds**-0.5 by default.
        num_sink_chunks: Leading readable chunks that are always kept; 0 for none.
        num_local_chunks: Trailing readable chunks that are always kept; 0 for none.
        largest_entry: Largest absolute entry of `summaries`, if known. It saves the search for it in a step.
        return_lse: Also return the logsumexp of the selected scores, the normaliser of hierarchical
            attention.
        implementation: Name of an implementation, from `scrubjay.kernels.dispatch`. For NumPy arrays only
            "auto" is allowed. "triton" needs summaries instead of scores.

    Raises:
        ValueError: On mismatched shapes, and if `top_k` is below 1 or too small for the always-kept chunks.
        ValueError: Unless either `scores`, or both `summary_query` and `summaries`, are passed.
        TypeError: On wrong dtypes.
    """
    has_options = num_sink_chunks or num_local_chunks or return_lse or implementation != "auto"
    if not (has_options or isinstance(valid, np.ndarray)):
        from scrubjay.kernels.dispatch import is_traced, load_implementation

        if not is_traced():
            selection = load_implementation("retrieval.step").choose(
                valid, top_k, scores, summary_query, summaries, summary_scale, largest_entry
            )
            if selection is not None:
                return SelectedChunks(*selection)
    check_counts(top_k, num_sink_chunks, num_local_chunks)
    if not ((scores is None) == (summary_query is not None) == (summaries is not None)):
        raise ValueError("choose_chunks needs either scores, or both summary_query and summaries")
    if scores is not None:
        _check_scores(scores, valid)
    else:
        check_summaries(summary_query, summaries, valid)
    score_source: Any = (scores, summary_query, summaries, summary_scale)
    forced_counts = (num_sink_chunks, num_local_chunks)
    if isinstance(valid, np.ndarray):
        if implementation != "auto":
            raise ValueError(f"implementation={implementation!r} is for tensors; use 'auto' for NumPy arrays")
        chunks, kept_scores = _choose_arrays(valid, top_k, score_source, forced_counts)
        return SelectedChunks(chunks, kept_scores, _log_normaliser(kept_scores) if return_lse else None)
    from scrubjay.kernels.normalisers import log_normaliser
    from scrubjay.kernels.retrieval.selection import choose_tensors

    chunks, kept_scores = choose_tensors(valid, top_k, score_source, forced_counts, implementation)
    return SelectedChunks(chunks, kept_scores, log_normaliser(kept_scores) if return_lse else None)


def check_counts(top_k: int, num_sinks: int, num_locals: int) -> None:
    """Raise ValueError if `top_k` or the numbers of always-kept chunks are invalid."""
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: must be at least 1")
    for name, count in (("num_sink_chunks", num_sinks), ("num_local_chunks", num_locals)):
        if count < 0:
            raise ValueError(f"{name}={count}: must not be negative")
    if num_sinks + num_locals > top_k:
        raise ValueError(
            f"num_sink_chunks={num_sinks} and num_local_chunks={num_locals} do not fit in "
            f"top_k={top_k}; raise top_k to at least {num_sinks + num_locals}"
        )


def _choose_arrays(
    valid: Any, top_k: int, score_source: Any, forced_counts: tuple[int, int]
) -> tuple[Any, Any]:
    scores, summary_query, summaries, summary_scale = score_source
    num_sinks, num_locals = forced_counts
    if scores is None:
        scale = summaries.shape[-1] ** -0.5 if summary_scale is None else summary_scale
        per_head = np.repeat(summaries, summary_query.shape[2] // summaries.shape[2], axis=2)
        scores = np.einsum(
            "btsd,bmsd->btsm", summary_query * np.asarray(scale, summary_query.dtype), per_head
        )
    if valid.dtype != bool:
        valid = np.arange(scores.shape[-1]) < valid[..., None]
    readable = np.broadcast_to(valid[:, :, None], scores.shape)
    scores = np.where(readable & ~np.isnan(scores), scores, -np.inf).astype(scores.dtype)
    ranking = scores
    if num_sinks or num_locals:
        rank = readable.cumsum(axis=-1)
        forced_mask = readable & ((rank <= num_sinks) | (rank > rank[..., -1:] - num_locals))
        ranking = np.where(forced_mask, np.inf, scores)
    chunks = best(ranking, top_k)
    absent = np.take_along_axis(ranking, chunks, axis=-1) == -np.inf
    return np.where(absent, -1, chunks), np.take_along_axis(scores, chunks, axis=-1)


def _log_normaliser(scores: Any) -> Any:
    if scores.shape[-1] == 0:
        return np.full(scores.shape[:-1], -np.inf, dtype=scores.dtype)
    highest = scores.max(axis=-1, keepdims=True)
    highest = np.where(highest == -np.inf, 0, highest)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(scores - highest).sum(axis=-1)) + highest[..., 0]


def _check_scores(scores: Any, valid: Any) -> None:
    if scores.ndim != 4:
        raise ValueError(f"scores have shape {tuple(scores.shape)}; expected [batch, queries, heads, chunks]")
    _check_floating("scores", scores)
    _check_valid(valid, (scores.shape[0], scores.shape[1], scores.shape[3]))


def check_summaries(query: Any, summaries: Any, valid: Any) -> None:
    """Raise ValueError or TypeError if chunk scores cannot be computed from these inputs."""
    # Every access to the shape of a tensor creates a new object.
    shape, other = query.shape, summaries.shape
    for name, array, sizes in (("summary_query", query, shape), ("summaries", summaries, other)):
        if len(sizes) != 4:
            raise ValueError(f"{name} has shape {tuple(sizes)}; expected 4 dimensions")
        _check_floating(name, array)
    if shape[0] != other[0] or shape[3] != other[3] or shape[3] < 1:
        expected = f"[{shape[0]}, chunks, heads, {shape[3]}] with a width of at least 1"
        raise ValueError(f"summaries have shape {tuple(other)}; expected {expected}")
    if other[2] < 1 or shape[2] % other[2]:
        raise ValueError(
            f"summaries has {other[2]} heads, which do not divide the {shape[2]} heads of "
            "summary_query evenly"
        )
    _check_valid(valid, (shape[0], shape[1], other[1]))


def _check_floating(name: str, array: Any) -> None:
    if "float" not in str(array.dtype):
        raise TypeError(f"{name} has dtype {array.dtype}; expected a floating-point dtype")


def _check_valid(valid: Any, mask_shape: tuple[int, int, int]) -> None:
    dtype_name = str(valid.dtype)
    if "bool" not in dtype_name and "int" not in dtype_name:
        raise TypeError(f"valid has dtype {valid.dtype}; expected an integer dtype (counts) or bool (a mask)")
    shape = mask_shape if "bool" in dtype_name else mask_shape[:2]
    if valid.shape != shape:
        raise ValueError(f"valid has shape {tuple(valid.shape)}; expected {list(shape)}")

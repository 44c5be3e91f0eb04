"""The first half of chunk retrieval: which chunks a query reads.

Arrays of numpy are chosen from by numpy, without importing torch, so that a store on disk or a bank that is
embedded elsewhere chooses as a layer of a policy does. Letters as in `chunk_retrieval`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scrubjay.kernels.select import Array, best

if TYPE_CHECKING:
    from scrubjay.kernels.dispatch import Implementation


class Chosen(NamedTuple, Generic[Array]):
    """Chunks, what is always kept first, and then from the best to the worst."""

    chunks: Int[Array, "B T S K"]
    """Their numbers, -1 where there is no further one."""
    scores: Float[Array, "B T S K"]
    """Their scores, -inf where there is no further one. Gradients flow to where scores came from."""
    lse: Float[Array, "B T S"] | None = None
    """The logarithm of the sum of their exponentials, -inf where there is none; None unless asked for."""


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
    return_lse: bool = False,
    implementation: Implementation = "auto",
) -> Chosen[Array]:
    """Return for each query the `top_k` chunks of the best scores, all if there are fewer.

    Scores are given, or are `summary_query · summaries * summary_scale`. Among equals the earlier chunk wins.
    Of the chunks a query may read the first `num_sink_chunks` and the last `num_local_chunks` are kept
    whatever their scores, and count among the `top_k`. A given score of NaN counts as -inf, and a chunk of
    that score is only kept for its place. `attend_chosen` reads what was chosen.

    Args:
        valid: How many leading chunks a query may read, or exactly which.
        top_k: In chunks, at least 1.
        scores: Of S heads; None to compute them.
        summary_query: What asks the summaries, S heads; None where scores are given.
        summaries: Of the chunks; None where scores are given.
        summary_scale: Of the products, by default Ds**-0.5.
        num_sink_chunks: In chunks, 0 or more.
        num_local_chunks: In chunks, 0 or more.
        return_lse: Whether the normaliser of a softmax over the kept scores comes with them: that of a
            hierarchical read.
        implementation: For tensors, one of `scrubjay.kernels.dispatch`; "triton" where scores are computed.

    Raises ValueError on mismatched shapes, `top_k` < 1 or too small for what is always kept, and unless
    either scores or both that they are computed from are given; TypeError on wrong dtypes.
    """
    check_counts(top_k, num_sink_chunks, num_local_chunks)
    given = [scores is not None, summary_query is not None, summaries is not None]
    if given not in ([True, False, False], [False, True, True]):
        raise ValueError("give either scores, or both summary_query and summaries")
    if scores is not None:
        _check_scores(scores, valid)
    else:
        check_summaries(summary_query, summaries, valid)
    source: Any = (scores, summary_query, summaries, summary_scale)
    always = (num_sink_chunks, num_local_chunks)
    if isinstance(valid, np.ndarray):
        if implementation != "auto":
            raise ValueError(f"implementation={implementation!r} is for tensors; arrays of numpy have 'auto'")
        chunks, kept = _of_arrays(valid, top_k, source, always)
        return Chosen(chunks, kept, _log_normaliser(kept) if return_lse else None)
    from scrubjay.kernels.normalisers import log_normaliser
    from scrubjay.kernels.retrieval.chosen import of_tensors

    chunks, kept = of_tensors(valid, top_k, source, always, implementation)
    return Chosen(chunks, kept, log_normaliser(kept) if return_lse else None)


def check_counts(top_k: int, num_sinks: int, num_locals: int) -> None:
    """Raise ValueError unless so many chunks can be kept."""
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: at least one chunk must be kept")
    for name, count in (("num_sink_chunks", num_sinks), ("num_local_chunks", num_locals)):
        if count < 0:
            raise ValueError(f"{name}={count}: must not be negative")
    if num_sinks + num_locals > top_k:
        raise ValueError(
            f"num_sink_chunks={num_sinks} and num_local_chunks={num_locals} do not fit in "
            f"top_k={top_k}; raise top_k to at least {num_sinks + num_locals}"
        )


def _of_arrays(valid: Any, top_k: int, source: Any, always: tuple[int, int]) -> tuple[Any, Any]:
    scores, summary_query, summaries, summary_scale = source
    num_sinks, num_locals = always
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
        forced = readable & ((rank <= num_sinks) | (rank > rank[..., -1:] - num_locals))
        ranking = np.where(forced, np.inf, scores)
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
        raise ValueError(f"scores have shape {tuple(scores.shape)}; expected [B, T, S, M]")
    _check_floating("scores", scores)
    _check_valid(valid, (scores.shape[0], scores.shape[1], scores.shape[3]))


def check_summaries(query: Any, summaries: Any, valid: Any) -> None:
    """Raise ValueError or TypeError unless scores of chunks can be computed from these."""
    for name, array in (("summary_query", query), ("summaries", summaries)):
        if array.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(array.shape)}; expected 4 dimensions")
        _check_floating(name, array)
    if query.shape[0] != summaries.shape[0] or query.shape[3] != summaries.shape[3] or query.shape[3] < 1:
        expected = f"[{query.shape[0]}, M, Gs, {query.shape[3]}], of width 1 and more"
        raise ValueError(f"summaries have shape {tuple(summaries.shape)}; expected {expected}")
    if summaries.shape[2] < 1 or query.shape[2] % summaries.shape[2]:
        raise ValueError(
            f"{summaries.shape[2]} summary heads do not divide {query.shape[2]} coarse heads evenly"
        )
    _check_valid(valid, (query.shape[0], query.shape[1], summaries.shape[1]))


def _check_floating(name: str, array: Any) -> None:
    if "float" not in str(array.dtype):
        raise TypeError(f"{name} has dtype {array.dtype}; expected a floating-point one")


def _check_valid(valid: Any, masked: tuple[int, int, int]) -> None:
    kind = str(valid.dtype)
    if "bool" not in kind and "int" not in kind:
        raise TypeError(f"valid has dtype {valid.dtype}; expected an integer count or a bool mask")
    shape = masked if "bool" in kind else masked[:2]
    if tuple(valid.shape) != shape:
        raise ValueError(f"valid has shape {tuple(valid.shape)}; expected {list(shape)}")

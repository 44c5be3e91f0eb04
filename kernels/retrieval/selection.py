"""`choose_chunks` for tensors: reference, vectorized torch and Triton paths."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.dispatch import resolve, unsupported_dtype, without_autocast
from scrubjay.kernels.retrieval import ranking, reference
from scrubjay.kernels.retrieval.problem import Choice, Problem

MAX_TOP_K = 64
"""Largest `top_k` of the Triton kernels."""


@without_autocast
def choose_tensors(
    valid: Tensor,
    top_k: int,
    score_source: tuple[Tensor | None, Tensor | None, Tensor | None, float | None],
    forced_counts: tuple[int, int],
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Run `kernels.choose_chunks` on validated arguments. Return chunks and scores.

    `score_source` is the tuple (scores, summary queries, summaries, scale). `forced_counts` is the number of
    sink chunks and the number of local chunks.
    """
    scores, summary_query, summaries, summary_scale = score_source
    if scores is not None:
        reason = "the Triton kernel computes scores from summaries"
        path = resolve(implementation, scores, valid, unsupported_reason=reason)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        choice = Choice(min(top_k, scores.shape[-1]), True, 1.0, 1.0, *forced_counts)
        select = reference.choose if path == "reference" else ranking.select_by_scores
        return select(scores, as_mask(valid, scores.shape[-1]), choice)
    assert summary_query is not None
    assert summaries is not None
    dtype = torch.promote_types(summary_query.dtype, summaries.dtype)
    summary_query, summaries = summary_query.to(dtype), summaries.to(dtype)
    scale = summaries.shape[-1] ** -0.5 if summary_scale is None else summary_scale
    choice = Choice(min(top_k, summaries.shape[1]), True, 1.0, scale, *forced_counts)
    valid = as_mask(valid, summaries.shape[1])
    # Selection does not use keys and values; the summaries are placeholders.
    stand_in = summaries[:, :, None]
    problem = Problem(summary_query, stand_in, stand_in, summaries, valid, summary_query, None, None)
    path = resolve(
        implementation,
        summary_query,
        summaries,
        valid,
        unsupported_reason=_unsupported_reason(problem, choice),
    )
    if 0 in (choice.top_k, *summary_query.shape):
        shape = (*summary_query.shape[:3], choice.top_k)
        return valid.new_full(shape, -1, dtype=torch.long), summary_query.new_zeros(shape).float()
    if path == "reference":
        return reference.choose(reference.coarse_scores(problem, choice), valid, choice)
    if path == "torch":
        problem = ranking.zero_unread_summaries(ranking.zero_idle_queries(problem))
        return ranking.select_in_order(problem, choice)
    from scrubjay.kernels.retrieval import gpu

    chunks = gpu.choose(problem, choice)
    return chunks.long(), ranking.score_chunks(problem, choice, chunks)


def as_mask(valid: Tensor, chunks: int) -> Tensor:
    """Return `valid` as a mask of readable chunks. Counts of leading chunks are converted."""
    return (
        valid if valid.dtype == torch.bool else torch.arange(chunks, device=valid.device) < valid[..., None]
    )


def _unsupported_reason(problem: Problem, choice: Choice) -> str | None:
    if choice.top_k > MAX_TOP_K:
        return f"top_k={choice.top_k} is more than the {MAX_TOP_K} chunks that the Triton kernels support"
    return unsupported_dtype(problem.summary_query)

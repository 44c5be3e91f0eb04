"""`choose_chunks` over tensors: the definition, vectorised torch, or Triton's selection."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.dispatch import resolve, unsupported_dtype, without_autocast
from scrubjay.kernels.retrieval import ranking, reference
from scrubjay.kernels.retrieval.problem import Choice, Problem

MOST_KEPT = 64
"""Chunks that Triton's selection holds."""


@without_autocast
def of_tensors(
    valid: Tensor,
    top_k: int,
    source: tuple[Tensor | None, Tensor | None, Tensor | None, float | None],
    always: tuple[int, int],
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Run `kernels.choose_chunks`, whose arguments have been checked: return chunks and scores.

    `source` is scores, or what they are computed from and a scale; `always` counts what is always kept.
    """
    scores, summary_query, summaries, summary_scale = source
    if scores is not None:
        unsupported = "its selection computes scores"
        path = resolve(implementation, scores, valid, unsupported=unsupported)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        choice = Choice(min(top_k, scores.shape[-1]), True, 1.0, 1.0, *always)
        select = reference.choose if path == "reference" else ranking.select_scored
        return select(scores, as_mask(valid, scores.shape[-1]), choice)
    assert summary_query is not None
    assert summaries is not None
    dtype = torch.promote_types(summary_query.dtype, summaries.dtype)
    summary_query, summaries = summary_query.to(dtype), summaries.to(dtype)
    scale = summaries.shape[-1] ** -0.5 if summary_scale is None else summary_scale
    choice = Choice(min(top_k, summaries.shape[1]), True, 1.0, scale, *always)
    valid = as_mask(valid, summaries.shape[1])
    # The choice knows no keys: the summaries stand in for them.
    stand_in = summaries[:, :, None]
    problem = Problem(summary_query, stand_in, stand_in, summaries, valid, summary_query, None, None)
    path = resolve(implementation, summary_query, summaries, valid, unsupported=_unsupported(problem, choice))
    if 0 in (choice.top_k, *summary_query.shape):
        shape = (*summary_query.shape[:3], choice.top_k)
        return valid.new_full(shape, -1, dtype=torch.long), summary_query.new_zeros(shape).float()
    if path == "reference":
        return reference.choose(reference.coarse_scores(problem, choice), valid, choice)
    if path == "torch":
        problem = ranking.blank_summaries(ranking.blank_idle(problem))
        return ranking.select_in_order(problem, choice)
    from scrubjay.kernels.retrieval import gpu

    chunks = gpu.choose(problem, choice)
    return chunks.long(), ranking.scores_of(problem, choice, chunks)


def as_mask(valid: Tensor, chunks: int) -> Tensor:
    """Return which chunks a query may read where only their number is said."""
    return (
        valid if valid.dtype == torch.bool else torch.arange(chunks, device=valid.device) < valid[..., None]
    )


def _unsupported(problem: Problem, choice: Choice) -> str | None:
    if choice.top_k > MOST_KEPT:
        return f"top_k={choice.top_k} is more than the {MOST_KEPT} chunks its selection holds"
    return unsupported_dtype(problem.summary_query)

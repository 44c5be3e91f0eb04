"""Top-k selection of chunks for tensors: summary scores, always-kept chunks and the best others.

`choose_chunks` validates its arguments and calls `choose_tensors`. Letters as in `chunk_retrieval`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import (
    any_dual,
    is_traced,
    load_implementation,
    resolve,
    unsupported_dtype,
    without_autocast,
)
from scrubjay.kernels.retrieval.problem import MAX_TOP_K, Choice, Problem, all_true, any_along, as_mask
from scrubjay.kernels.select import best, largest

# Scalars per piece when exact scores of tied queries are computed, so that a piece fits the caches.
_PIECE_SCALARS = 1 << 21

# Chunks per selected chunk above which ties are resolved among the best candidates only, if these suffice.
_CANDIDATE_RATIO = 8

# Chunks per selected chunk above which only the selected scores are recomputed with gradients.
_RESCORE_RATIO = 128

Selection = tuple[Int[Tensor, "B T S K"], Float[Tensor, "B T S K"]]
"""Indices of the selected chunks and their scores; -inf if fewer than K are readable."""


@without_autocast
def choose_tensors(
    valid: Tensor,
    top_k: int,
    score_source: tuple[Tensor | None, Tensor | None, Tensor | None, float | None],
    forced_counts: tuple[int, int],
    implementation: str,
) -> Selection:
    """Run `kernels.choose_chunks` on validated arguments. Return chunks and scores.

    `score_source` is the tuple (scores, summary queries, summaries, scale). `forced_counts` is the number of
    sink chunks and the number of local chunks.
    """
    scores, query, summaries, summary_scale = score_source
    if scores is not None:
        reason = "the Triton kernel computes scores from summaries"
        path = resolve(implementation, scores, valid, unsupported_reason=reason)
        if scores.dtype.itemsize < 4:
            scores = scores.float()
        choice = Choice(min(top_k, scores.shape[-1]), True, 1.0, 1.0, *forced_counts)
        choose = (
            load_implementation("retrieval.reference").choose if path == "reference" else select_by_scores
        )
        return choose(scores, as_mask(valid, scores.shape[-1]), choice)
    assert query is not None
    assert summaries is not None
    if query.dtype != summaries.dtype:
        dtype = torch.promote_types(query.dtype, summaries.dtype)
        query, summaries = query.to(dtype), summaries.to(dtype)
    scale = summaries.shape[-1] ** -0.5 if summary_scale is None else summary_scale
    top_k = min(top_k, summaries.shape[1])
    path = resolve(
        implementation, query, summaries, valid, unsupported_reason=_unsupported_reason(query, top_k)
    )
    if 0 in (top_k, *query.shape):
        shape = (*query.shape[:3], top_k)
        return valid.new_full(shape, -1, dtype=torch.long), query.new_zeros(shape).float()
    valid = as_mask(valid, summaries.shape[1])
    choice = Choice(top_k, True, 1.0, scale, *forced_counts)
    # Selection does not use keys and values; the summaries are placeholders.
    stand_in = summaries[:, :, None]
    problem = Problem(query, stand_in, stand_in, summaries, valid, query, None, None)
    if path == "reference":
        reference = load_implementation("retrieval.reference")
        return reference.choose(reference.coarse_scores(problem, choice), valid, choice)
    if path == "torch":
        return select_in_order(zero_unread_summaries(zero_idle_queries(problem)), choice)
    from scrubjay.kernels.retrieval import gpu

    chunks = gpu.choose(problem, choice)
    return chunks.long(), score_chunks(problem, choice, chunks)


def _unsupported_reason(query: Tensor, top_k: int) -> str | None:
    if top_k > MAX_TOP_K:
        return f"top_k={top_k} is more than the {MAX_TOP_K} chunks that the Triton kernels support"
    return unsupported_dtype(query)


def select(problem: Problem, choice: Choice) -> Selection:
    """Return the best chunks in any order, and their scores.

    Ties go to the earlier chunk. Chunks with a score of -inf are absent, and their indices are arbitrary.
    """
    if _should_rescore(problem, choice):
        detached_problem = problem._replace(
            query=problem.query.detach(),
            summaries=problem.summaries.detach(),
            summary_query=problem.summary_query.detach(),
        )
        chunks, scores = select(detached_problem, choice)
        selected_scores = score_chunks(problem, choice, chunks.masked_fill(scores == -math.inf, -1))
        return chunks, selected_scores
    scores, readable = _mask_unreadable(_coarse_scores(problem, choice), problem.valid)
    ranking = _prioritize_forced(scores.detach(), readable, choice)
    chunks = _select_best(ranking, problem, choice, in_order=False)
    return chunks, scores.gather(3, chunks)


def _should_rescore(problem: Problem, choice: Choice) -> bool:
    """Return True if a gradient through the selected scores only is cheaper than one through all scores."""
    query, summaries = problem.summary_query, problem.summaries
    needs_graph = torch.is_grad_enabled() and query.requires_grad and not summaries.requires_grad
    many = summaries.shape[1] >= _RESCORE_RATIO * choice.top_k
    return needs_graph and many and not (is_traced() or query.is_cuda or any_dual(query, summaries))


def select_in_order(problem: Problem, choice: Choice) -> Selection:
    """Select the always-kept chunks first, then chunks in descending order of score; -1 for absent chunks."""
    scores, readable = _mask_unreadable(_coarse_scores(problem, choice), problem.valid)
    ranking = _prioritize_forced(scores.detach(), readable, choice)
    return _gather_selection(scores, ranking, _select_best(ranking, problem, choice, in_order=True))


def select_by_scores(
    scores: Float[Tensor, "B T S M"], valid: Bool[Tensor, "B T M"], choice: Choice
) -> Selection:
    """Select the always-kept chunks, then chunks in descending order of `scores`; NaN counts as -inf."""
    scores = scores.masked_fill(scores.isnan(), -math.inf)
    scores, readable = _mask_unreadable(scores, valid)
    ranking = _prioritize_forced(scores.detach(), readable, choice)
    return _gather_selection(scores, ranking, best(ranking, choice.top_k))


def score_chunks(
    problem: Problem, choice: Choice, chunks: Int[Tensor, "B T S K"]
) -> Float[Tensor, "B T S K"]:
    """Return the scores of selected chunks; -inf for negative indices."""
    query, summaries, absent = problem.summary_query, problem.summaries, chunks < 0
    coarse = query.shape[2]
    batch_index = torch.arange(len(query), device=query.device)[:, None, None, None]
    group = torch.arange(coarse, device=query.device)[:, None] * summaries.shape[2] // coarse
    chunk_summaries = summaries[batch_index, chunks.clamp(min=0), group].masked_fill(absent[..., None], 0)
    query = query.masked_fill(absent.all(dim=-1, keepdim=True), 0).to(problem.coarse_dtype)
    scores = (query[:, :, :, None] * chunk_summaries).sum(dim=-1) * choice.summary_scale
    return scores.masked_fill(absent, -math.inf)


def zero_idle_queries(problem: Problem) -> Problem:
    """Zero the queries for which all chunks are masked.

    Such a query can be NaN, and the NaN would reach gradients even through weights of zero.
    """
    reads = any_along(problem.valid, -1)[..., None, None]
    if not is_traced() and not reads.is_cuda and reads.all():
        return problem
    query = torch.where(reads, problem.query, 0)
    same_query = problem.summary_query is problem.query
    return problem._replace(
        query=query, summary_query=query if same_query else torch.where(reads, problem.summary_query, 0)
    )


def zero_unread_summaries(problem: Problem) -> Problem:
    """Zero the summaries that no query may read, if their NaNs could reach a gradient."""
    if not (is_traced() or problem.summaries.requires_grad or problem.summary_query.requires_grad):
        return problem
    unread = ~any_along(problem.valid, 1)
    if not is_traced() and not unread.any():
        return problem
    return problem._replace(summaries=problem.summaries.masked_fill(unread[..., None, None], 0))


def _gather_selection(scores: Tensor, ranking: Tensor, chunks: Tensor) -> Selection:
    return chunks.masked_fill(ranking.gather(3, chunks) == -math.inf, -1), scores.gather(3, chunks)


def _mask_unreadable(scores: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    readable = valid[:, :, None].expand_as(scores)
    # Checking the whole mask costs a tenth of an elementwise `where`.
    if not is_traced() and not valid.is_cuda and all_true(valid):
        return scores, readable
    return torch.where(readable, scores, -math.inf), readable


def _prioritize_forced(scores: Tensor, readable: Bool[Tensor, "B T S M"], choice: Choice) -> Tensor:
    """Return `scores` with +inf for always-kept chunks."""
    if not choice.num_sinks and not choice.num_locals:
        return scores
    rank = readable.cumsum(dim=-1)
    last = rank[..., -1:]
    always = readable & ((rank <= choice.num_sinks) | (rank > last - choice.num_locals))
    return scores.masked_fill(always, math.inf)


def _select_best(
    ranking: Float[Tensor, "B T S M"], problem: Problem, choice: Choice, in_order: bool
) -> Int[Tensor, "B T S K"]:
    """Return the chunks of the K largest scores; ties go to the earlier chunk."""
    top_k = choice.top_k
    if top_k == ranking.shape[-1] and not in_order:
        return torch.arange(top_k, device=ranking.device).expand(ranking.shape)
    if is_traced() or ranking.is_cuda:
        return best(ranking, top_k)
    # One large product may round the scores of two equal summaries differently. If two neighbours, or the
    # last selected and the first dropped chunk, differ by no more than rounding, the query's scores are
    # recomputed with one order of summation, and sorted.
    values, chunks = largest(ranking, min(top_k + 1, ranking.shape[-1]))
    above, below = (values[..., :-1], values[..., 1:]) if in_order else (values[..., -2:-1], values[..., -1:])
    chunks = chunks[..., :top_k]
    rounding = _rounding(problem, choice)
    close = ~(above - below > rounding[..., None])
    if close.any():
        tied = (close & (below > -math.inf)).any(dim=-1)
        chunks[tied] = _sort_exactly(ranking, tied, rounding, problem, choice)
    return chunks


def _rounding(problem: Problem, choice: Choice) -> Float[Tensor, "B T S"]:
    """Return an upper bound of the difference that rounding causes between scores of equal summaries."""
    query, summaries, dtype = problem.summary_query.detach(), problem.summaries.detach(), problem.coarse_dtype
    lowest, highest = torch.aminmax(summaries)  # seven times faster than a norm
    bound = 2 * query.shape[-1] * torch.finfo(dtype).eps * abs(choice.summary_scale)
    return torch.linalg.vector_norm(query, 1, dim=-1, dtype=dtype) * torch.maximum(highest, -lowest) * bound


def _sort_exactly(
    ranking: Tensor, tied: Bool[Tensor, "B T S"], rounding: Tensor, problem: Problem, choice: Choice
) -> Int[Tensor, "tied K"]:
    row, time, head = tied.nonzero().unbind(-1)
    summaries = problem.summaries.detach().to(ranking.dtype)
    group = head * summaries.shape[2] // ranking.shape[2]
    query = problem.summary_query.detach().to(ranking.dtype)[row, time, head] * choice.summary_scale
    tied_ranking = ranking[row, time, head]
    near = _candidates(tied_ranking, rounding[tied], choice.top_k)
    tied_ranking = tied_ranking.gather(1, near)
    pieces = []
    for piece in torch.arange(len(row)).split(max(1, _PIECE_SCALARS // (near.shape[1] * query.shape[1]))):
        piece_summaries = summaries[row[piece, None], near[piece], group[piece, None]]
        exact = (piece_summaries * query[piece, None]).sum(dim=-1)
        best_near = best(torch.where(tied_ranking[piece].isinf(), tied_ranking[piece], exact), choice.top_k)
        pieces.append(near[piece].gather(1, best_near))
    return torch.cat(pieces)


def _candidates(
    ranking: Float[Tensor, "N M"], rounding: Float[Tensor, " N"], top_k: int
) -> Int[Tensor, "N J"]:
    """Return candidate chunks in index order.

    The candidates include the `top_k` best chunks, even if rounding changes the difference between two scores
    by up to `rounding`.
    """
    chunks = ranking.shape[1]
    if chunks > _CANDIDATE_RATIO * top_k:
        values, near = largest(ranking, 2 * top_k)
        last = values[:, -1]
        if ((last < values[:, top_k - 1] - rounding) | (last == -math.inf)).all():
            return near.sort(dim=1).values
    return torch.arange(chunks).expand_as(ranking)


def _coarse_scores(problem: Problem, choice: Choice) -> Float[Tensor, "B T S M"]:
    query, summaries = problem.summary_query, problem.summaries
    dtype = problem.coarse_dtype
    batch, time, heads, width = query.shape
    chunks, groups = summaries.shape[1:3]
    query, summaries = query.to(dtype) * choice.summary_scale, summaries.to(dtype)
    if is_traced():
        # A traced graph sorts these scores as they are, so equal summaries must get equal ones.
        per_head = summaries.repeat_interleave(heads // groups, dim=2).transpose(1, 2)
        return (query[:, :, :, None] * per_head[:, None]).sum(dim=-1)
    left = query.view(batch, time, groups, -1, width)
    if batch == 1 or groups == 1:
        left = left.transpose(1, 2).reshape(batch, groups, -1, width)
        scores = left @ summaries.permute(0, 2, 3, 1)
        return (
            scores.view(batch, groups, time, -1, chunks).transpose(1, 2).reshape(batch, time, heads, chunks)
        )
    # One product per group reads the summaries where they lie; all groups at once would copy them.
    scores = [
        (left[:, :, g].flatten(1, 2) @ summaries[:, :, g].transpose(1, 2)).view(batch, time, -1, chunks)
        for g in range(groups)
    ]
    return torch.cat(scores, dim=2)

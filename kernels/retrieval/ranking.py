"""The choice of chunks in vectorised torch: scores of summaries, what is always kept, and the best.

Letters as in `chunk_retrieval`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import any_dual, is_traced
from scrubjay.kernels.retrieval.problem import Choice, Problem, every, some
from scrubjay.kernels.select import best, largest

# Above this many scalars the exact scores of tied queries leave the caches: they go in pieces.
_PIECE_SCALARS = 1 << 21

# Of so many chunks for one that is kept those about the last kept are looked at, if they suffice.
_NEAR = 8

# From so many chunks for one that is kept on, the kept ones' scores are taken a second time, with gradients.
_MANY_FOR_ONE = 128

Selection = tuple[Int[Tensor, "B T S K"], Float[Tensor, "B T S K"]]
"""Numbers of the chunks kept, and their scores: -inf where fewer than K are readable."""


def select(problem: Problem, choice: Choice) -> Selection:
    """Return the chunks of the best scores in no order, of equals the earlier; the absent may be any."""
    if _scored_again(problem, choice):
        cut = problem._replace(
            query=problem.query.detach(),
            summaries=problem.summaries.detach(),
            summary_query=problem.summary_query.detach(),
        )
        chunks, scores = select(cut, choice)
        kept = scores_of(problem, choice, chunks.masked_fill(scores == -math.inf, -1))
        return chunks, kept
    scores, readable = _readable(_coarse_scores(problem, choice), problem.valid)
    ranking = _forced(scores.detach(), readable, choice)
    chunks = _best(ranking, problem, choice, ordered=False)
    return chunks, scores.gather(3, chunks)


def _scored_again(problem: Problem, choice: Choice) -> bool:
    """Return whether gradients had better see the few scores that are kept than all."""
    query, summaries = problem.summary_query, problem.summaries
    recorded = torch.is_grad_enabled() and query.requires_grad and not summaries.requires_grad
    many = summaries.shape[1] >= _MANY_FOR_ONE * choice.top_k
    return recorded and many and not (is_traced() or query.is_cuda or any_dual(query, summaries))


def select_in_order(problem: Problem, choice: Choice) -> Selection:
    """Do so from the best to the worst, what is always kept before all others; -1 for the absent."""
    scores, readable = _readable(_coarse_scores(problem, choice), problem.valid)
    ranking = _forced(scores.detach(), readable, choice)
    return _found(scores, ranking, _best(ranking, problem, choice, ordered=True))


def select_scored(
    scores: Float[Tensor, "B T S M"], valid: Bool[Tensor, "B T M"], choice: Choice
) -> Selection:
    """Do so by scores that are given; NaN counts as -inf."""
    scores = scores.masked_fill(scores.isnan(), -math.inf)
    scores, readable = _readable(scores, valid)
    ranking = _forced(scores.detach(), readable, choice)
    return _found(scores, ranking, best(ranking, choice.top_k))


def scores_of(problem: Problem, choice: Choice, chunks: Int[Tensor, "B T S K"]) -> Float[Tensor, "B T S K"]:
    """Return the scores of chunks that are chosen, -inf for a negative one."""
    query, summaries, absent = problem.summary_query, problem.summaries, chunks < 0
    coarse = query.shape[2]
    row = torch.arange(len(query), device=query.device)[:, None, None, None]
    group = torch.arange(coarse, device=query.device)[:, None] * summaries.shape[2] // coarse
    fetched = summaries[row, chunks.clamp(min=0), group].masked_fill(absent[..., None], 0)
    query = query.masked_fill(absent.all(dim=-1, keepdim=True), 0).to(problem.coarse_dtype)
    scores = (query[:, :, :, None] * fetched).sum(dim=-1) * choice.summary_scale
    return scores.masked_fill(absent, -math.inf)


def blank_idle(problem: Problem) -> Problem:
    """Zero the queries that may read nothing: NaN in them would reach gradients through weights of zero."""
    reads = some(problem.valid, -1)[..., None, None]
    if not is_traced() and not reads.is_cuda and reads.all():
        return problem
    query = torch.where(reads, problem.query, 0)
    same = problem.summary_query is problem.query
    return problem._replace(
        query=query, summary_query=query if same else torch.where(reads, problem.summary_query, 0)
    )


def blank_summaries(problem: Problem) -> Problem:
    """Zero the summaries that no query may look at, where their NaN would reach a gradient."""
    if not (is_traced() or problem.summaries.requires_grad or problem.summary_query.requires_grad):
        return problem
    unread = ~some(problem.valid, 1)
    if not is_traced() and not unread.any():
        return problem
    return problem._replace(summaries=problem.summaries.masked_fill(unread[..., None, None], 0))


def _found(scores: Tensor, ranking: Tensor, chunks: Tensor) -> Selection:
    return chunks.masked_fill(ranking.gather(3, chunks) == -math.inf, -1), scores.gather(3, chunks)


def _readable(scores: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    readable = valid[:, :, None].expand_as(scores)
    # A look at all is a tenth of a choice by each.
    if not is_traced() and not valid.is_cuda and every(valid):
        return scores, readable
    return torch.where(readable, scores, -math.inf), readable


def _forced(scores: Tensor, readable: Bool[Tensor, "B T S M"], choice: Choice) -> Tensor:
    """Return scores by which what is always kept comes first."""
    if not choice.num_sinks and not choice.num_locals:
        return scores
    rank = readable.cumsum(dim=-1)
    last = rank[..., -1:]
    always = readable & ((rank <= choice.num_sinks) | (rank > last - choice.num_locals))
    return scores.masked_fill(always, math.inf)


def _best(
    ranking: Float[Tensor, "B T S M"], problem: Problem, choice: Choice, ordered: bool
) -> Int[Tensor, "B T S K"]:
    """Return the chunks of the K largest, the earlier of equals."""
    top_k = choice.top_k
    if top_k == ranking.shape[-1] and not ordered:
        return torch.arange(top_k, device=ranking.device).expand(ranking.shape)
    if is_traced() or ranking.is_cuda:
        return best(ranking, top_k)
    # One large product may round the scores of two equal summaries differently. Where two neighbours, or the
    # last kept and the first dropped, are no farther apart than rounding, the query's scores are taken again,
    # each in the same order of summation, and sorted.
    values, chunks = largest(ranking, min(top_k + 1, ranking.shape[-1]))
    above, below = (values[..., :-1], values[..., 1:]) if ordered else (values[..., -2:-1], values[..., -1:])
    chunks = chunks[..., :top_k]
    rounding = _rounding(problem, choice)
    close = ~(above - below > rounding[..., None])
    if close.any():
        tied = (close & (below > -math.inf)).any(dim=-1)
        chunks[tied] = _sorted_exactly(ranking, tied, rounding, problem, choice)
    return chunks


def _rounding(problem: Problem, choice: Choice) -> Float[Tensor, "B T S"]:
    """Return at least how far apart rounding may put the scores of two equal summaries."""
    query, summaries, dtype = problem.summary_query.detach(), problem.summaries.detach(), problem.coarse_dtype
    lowest, highest = torch.aminmax(summaries)  # seven times faster than a norm
    bound = 2 * query.shape[-1] * torch.finfo(dtype).eps * abs(choice.summary_scale)
    return torch.linalg.vector_norm(query, 1, dim=-1, dtype=dtype) * torch.maximum(highest, -lowest) * bound


def _sorted_exactly(
    ranking: Tensor, tied: Bool[Tensor, "B T S"], rounding: Tensor, problem: Problem, choice: Choice
) -> Int[Tensor, "tied K"]:
    row, time, head = tied.nonzero().unbind(-1)
    summaries = problem.summaries.detach().to(ranking.dtype)
    group = head * summaries.shape[2] // ranking.shape[2]
    query = problem.summary_query.detach().to(ranking.dtype)[row, time, head] * choice.summary_scale
    ranked = ranking[row, time, head]
    near = _near(ranked, rounding[tied], choice.top_k)
    ranked = ranked.gather(1, near)
    found = []
    for piece in torch.arange(len(row)).split(max(1, _PIECE_SCALARS // (near.shape[1] * query.shape[1]))):
        fetched = summaries[row[piece, None], near[piece], group[piece, None]]
        exact = (fetched * query[piece, None]).sum(dim=-1)
        kept = best(torch.where(ranked[piece].isinf(), ranked[piece], exact), choice.top_k)
        found.append(near[piece].gather(1, kept))
    return torch.cat(found)


def _near(ranked: Float[Tensor, "N M"], rounding: Float[Tensor, " N"], top_k: int) -> Int[Tensor, "N J"]:
    """Return, in their order, chunks that hold the `top_k` best however scores are rounded."""
    chunks = ranked.shape[1]
    if chunks > _NEAR * top_k:
        values, near = largest(ranked, 2 * top_k)
        last = values[:, -1]
        if ((last < values[:, top_k - 1] - rounding) | (last == -math.inf)).all():
            return near.sort(dim=1).values
    return torch.arange(chunks).expand_as(ranked)


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

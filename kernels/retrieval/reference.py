"""Reference implementation of chunk retrieval, one query head at a time. Letters as in `chunk_retrieval`."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.retrieval.problem import Choice, Problem, Reading


def retrieve(problem: Problem, choice: Choice) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"]]:
    """Return the read-out and the log normaliser of each query."""
    chunks, scores = choose(coarse_scores(problem, choice), problem.valid, choice)
    return attend(problem.reading(chunks, scores), choice)


def coarse_scores(problem: Problem, choice: Choice) -> Float[Tensor, "B T S M"]:
    """Return the score of every summary."""
    query, summaries = problem.summary_query.to(problem.coarse_dtype), problem.summaries
    heads, groups = query.shape[2], summaries.shape[2]
    # A sum of products, since a dot product's rounding depends on where in memory a row lies.
    head_scores = [
        (query[:, :, s, None] * summaries[:, None, :, s * groups // heads]).sum(dim=-1) for s in range(heads)
    ]
    return choice.summary_scale * torch.stack(head_scores, dim=2)


def choose(
    scores: Float[Tensor, "B T S M"], valid: Tensor, choice: Choice
) -> tuple[Int[Tensor, "B T S K"], Float[Tensor, "B T S K"]]:
    """Return the selected chunks and their scores: always-kept chunks first, then the best others.

    Unused slots hold chunk -1 and score -inf.
    """
    batch, time, heads, _ = scores.shape
    scores = scores.masked_fill(scores.isnan(), -math.inf)
    chunks = torch.full((batch, time, heads, choice.top_k), -1, device=scores.device)
    kept_scores = []
    for b in range(batch):
        for t in range(time):
            readable = valid[b, t].nonzero().flatten().tolist()
            always = readable[: choice.num_sinks]
            always = always + readable[-choice.num_locals :] if choice.num_locals else always
            for s in range(heads):
                head_scores = scores[b, t, s]
                candidates = [m for m in readable if head_scores[m] > -math.inf or m in always]
                candidates.sort(
                    key=lambda m: (m not in always, 0 if m in always else -head_scores[m].item(), m)
                )
                best = candidates[: choice.top_k]
                chunks[b, t, s, : len(best)] = torch.tensor(best, dtype=torch.long)
                kept_scores.append(
                    functional.pad(head_scores[best], (0, choice.top_k - len(best)), value=-math.inf)
                )
    return chunks, torch.stack(kept_scores).view(chunks.shape) if kept_scores else scores.new_zeros(
        chunks.shape
    )


def attend(reading: Reading, choice: Choice) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"]]:
    """Return each query's read-out of its chunks, and the log normaliser."""
    query, keys, values, chunks, scores, positions, lengths = reading
    assert scores is not None
    batch, time, heads, _ = query.shape
    groups, coarse, dtype = keys.shape[3], chunks.shape[2], reading.score_dtype
    rows, normalisers = [], []
    for b in range(batch):
        for t in range(time):
            for h in range(heads):
                s, g = h * coarse // heads, h * groups // heads
                present = (scores[b, t, s] > -math.inf).nonzero().flatten().tolist()
                if not present:
                    rows.append(query.new_zeros(values.shape[-1]))
                    normalisers.append(query.new_full((), -math.inf, dtype=dtype))
                    continue
                logits, content = [], []
                for m in chunks[b, t, s, present].tolist():
                    length = keys.shape[2] if lengths is None else int(lengths[b, m])
                    offset = 0 if positions is None else positions[:length]
                    chunk_keys = (keys[b, m, :length, g] + offset).to(dtype)
                    logits.append(chunk_keys @ query[b, t, h].to(dtype) * choice.scale)
                    content.append(values[b, m, :length, g] + offset)
                if choice.joint:
                    attention = functional.softmax(torch.cat(logits), dim=0)
                    normalisers.append(torch.logsumexp(torch.cat(logits), dim=0))
                else:
                    chunk_scores = scores[b, t, s, present]
                    weights = functional.softmax(chunk_scores, dim=0)
                    attention = torch.cat(
                        [functional.softmax(x, 0) * w for x, w in zip(logits, weights, strict=True)]
                    )
                    normalisers.append(torch.logsumexp(chunk_scores, dim=0))
                all_content = torch.cat(content)
                rows.append((attention.to(all_content.dtype)[:, None] * all_content).sum(dim=0))
    return torch.stack(rows).view(batch, time, heads, -1), torch.stack(normalisers).view(batch, time, heads)

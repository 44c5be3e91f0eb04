"""The definition of chunk retrieval: one query head at a time. Letters as in `chunk_retrieval`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.retrieval.problem import Choice, Problem


def retrieve(problem: Problem, choice: Choice) -> Float[Tensor, "B T H V"]:
    """Return what each query reads."""
    query, keys, values, summaries, valid, summary_query, positions, lengths = problem
    batch, time, heads, _ = query.shape
    groups, coarse, summary_groups = keys.shape[3], summary_query.shape[2], summaries.shape[2]
    dtype = problem.score_dtype
    rows = []
    for b in range(batch):
        for t in range(time):
            for h in range(heads):
                c, g = h * coarse // heads, h * groups // heads
                readable = valid[b, t].nonzero().flatten().tolist()
                coarse_query = summary_query[b, t, c].to(problem.coarse_dtype)
                # A sum of products, since a dot product's rounding depends on where in memory a row lies.
                score = {
                    m: choice.summary_scale
                    * (coarse_query * summaries[b, m, c * summary_groups // coarse]).sum()
                    for m in readable
                }
                kept_anyway = readable[: choice.num_sinks]
                if choice.num_locals:
                    kept_anyway = kept_anyway + readable[-choice.num_locals :]
                ranking = {m: (m not in kept_anyway, -score[m].item(), m) for m in readable}
                best = sorted(readable, key=ranking.__getitem__)[: choice.top_k]
                if not best:
                    rows.append(query.new_zeros(values.shape[-1]))
                    continue
                logits, content = [], []
                for m in best:
                    length = keys.shape[2] if lengths is None else int(lengths[b, m])
                    offset = 0 if positions is None else positions[:length]
                    stored = (keys[b, m, :length, g] + offset).to(dtype)
                    logits.append(stored @ query[b, t, h].to(dtype) * choice.scale)
                    content.append(values[b, m, :length, g] + offset)
                if choice.joint:
                    attention = functional.softmax(torch.cat(logits), dim=0)
                else:
                    weights = functional.softmax(torch.stack([score[m] for m in best]), dim=0)
                    attention = torch.cat(
                        [functional.softmax(x, 0) * w for x, w in zip(logits, weights, strict=True)]
                    )
                mixed = torch.cat(content)
                rows.append((attention.to(mixed.dtype)[:, None] * mixed).sum(dim=0))
    return torch.stack(rows).view(batch, time, heads, -1)

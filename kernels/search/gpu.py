# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""The scan of `nearest` on Triton: scores of rows, with norms and mask, in one pass over the keys.

Rows that are not allowed are not read. The choice of the best is torch's: the scores are a row's width
smaller than the keys, so that to choose in the same pass would save next to nothing, and would bound how many
are kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch, with_dense_rows

_BLOCK_ROWS, _BLOCK_WIDTH = 16, 128


@triton.jit
def _scores_kernel(
    query_ptr, keys_ptr, rows_ptr, norms_ptr, allowed_ptr, scores_ptr,
    Q, R,
    query_q, keys_n,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    readable = r < R
    if allowed_ptr is not None:
        readable = readable & (tl.load(allowed_ptr + r, mask=readable, other=0) != 0)
    if rows_ptr is not None:
        row = tl.load(rows_ptr + r, mask=readable, other=0).to(tl.int64)
    else:
        row = r.to(tl.int64)
    p_keys = keys_ptr + row * keys_n
    if norms_ptr is not None:
        norms = tl.load(norms_ptr + r, mask=readable, other=1.0).to(tl.float32)
    p_query, p_scores = query_ptr, scores_ptr + r
    for _ in range(Q):
        # [BLOCK_R, BLOCK_D]
        total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            m_d = d < D
            b_query = tl.load(p_query + d, mask=m_d, other=0.0).to(tl.float32)
            b_keys = tl.load(p_keys[:, None] + d[None, :], mask=readable[:, None] & m_d[None, :], other=0.0)
            total += b_keys.to(tl.float32) * b_query[None, :]
        scores = tl.sum(total, axis=1)
        if norms_ptr is not None:
            scores = scores / norms
        if allowed_ptr is not None:
            scores = tl.where(readable, scores, float("-inf"))
        tl.store(p_scores, scores, mask=r < R)
        p_query += query_q
        p_scores += R


def scores(
    query: Tensor,
    keys: Tensor,
    *,
    rows: Tensor | None = None,
    norms: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return the scores `[Q, R]` in float32 of the listed rows, by default of all; -inf where not allowed."""
    count = keys.shape[0] if rows is None else rows.shape[0]
    out = torch.empty(query.shape[0], count, dtype=torch.float32, device=query.device)
    scores_launch(query, keys, rows, norms, allowed, out).run()
    return out


def scores_launch(
    query: Tensor,
    keys: Tensor,
    rows: Tensor | None,
    norms: Tensor | None,
    allowed: Tensor | None,
    out: Tensor,
) -> Launch:
    """Return the launch that fills `out`.

    Args:
        query: "Q D".
        keys: "N D".
        rows: Which keys; None for all.
        norms: By which scores are divided.
        allowed: Which keys may be found; others score -inf.
        out: Filled: a score for each query and row.
    """
    query, keys = with_dense_rows(query), with_dense_rows(keys)
    listed, norms, allowed = (None if t is None else t.contiguous() for t in (rows, norms, allowed))
    return Launch(
        _scores_kernel,
        (triton.cdiv(out.shape[1], _BLOCK_ROWS),),
        {
            "query_ptr": query,
            "keys_ptr": keys,
            "rows_ptr": listed,
            "norms_ptr": norms,
            "allowed_ptr": allowed,
            "scores_ptr": out,
            "Q": query.shape[0],
            "R": out.shape[1],
            "query_q": query.stride(0),
            "keys_n": keys.stride(0),
        },
        {"D": keys.shape[1], "BLOCK_R": _BLOCK_ROWS, "BLOCK_D": _BLOCK_WIDTH},
    )


def configurations() -> dict[str, Launch]:
    """Return the launches of the main configurations on meta tensors, to compile without a GPU."""
    launches = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):

        def empty(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(*sizes, dtype=dtype, device="meta")

        name = f"{str(dtype).removeprefix('torch.')}, D=384"
        query, keys = empty(1, 384), empty(65_536, 384)
        norms, allowed = empty(65_536, dtype=torch.float32), empty(65_536, dtype=torch.bool)
        scores, some = empty(1, 65_536, dtype=torch.float32), empty(1, 4096, dtype=torch.float32)
        rows = empty(4096, dtype=torch.int64)
        launches[f"all rows: {name}"] = scores_launch(query, keys, None, norms, allowed, scores)
        launches[f"listed rows: {name}"] = scores_launch(query, keys, rows, None, None, some)
    return launches

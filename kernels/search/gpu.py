# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Triton kernel for the scores of table rows. One pass over the keys also applies norms and mask.

Masked rows are not read. Torch selects the best scores. The scores are much smaller than the keys, so a
selection in the same pass would save little and would limit the number of results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch, ensure_dense_rows

_BLOCK_ROWS, _BLOCK_WIDTH = 16, 128


@triton.jit
def _scores_kernel(
    query_ptr, keys_ptr, rows_ptr, norms_ptr, row_mask_ptr, scores_ptr,
    Q, R,
    query_q, keys_n,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    readable = r < R
    if row_mask_ptr is not None:
        readable = readable & (tl.load(row_mask_ptr + r, mask=readable, other=0) != 0)
    if rows_ptr is not None:
        row = tl.load(rows_ptr + r, mask=readable, other=0).to(tl.int64)
    else:
        row = r.to(tl.int64)
    p_keys = keys_ptr + row * keys_n
    if norms_ptr is not None:
        norms = tl.load(norms_ptr + r, mask=readable, other=1.0).to(tl.float32)
    p_query, p_scores = query_ptr, scores_ptr + r
    # One query at a time; the keys stay in the cache.
    for _ in range(Q):
        # [BLOCK_R, BLOCK_D]
        total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            m_d = d < D
            # [BLOCK_D] and [BLOCK_R, BLOCK_D]
            b_query = tl.load(p_query + d, mask=m_d, other=0.0).to(tl.float32)
            b_keys = tl.load(p_keys[:, None] + d[None, :], mask=readable[:, None] & m_d[None, :], other=0.0)
            total += b_keys.to(tl.float32) * b_query[None, :]
        scores = tl.sum(total, axis=1)
        if norms_ptr is not None:
            scores = scores / norms
        if row_mask_ptr is not None:
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
    row_mask: Tensor | None = None,
) -> Tensor:
    """Return the float32 scores `[Q, R]` of Q queries for the R rows of `keys` that `rows` lists.

    By default all rows get scores. The score of a row that `row_mask` excludes is -inf.
    """
    count = keys.shape[0] if rows is None else rows.shape[0]
    out = torch.empty(query.shape[0], count, dtype=torch.float32, device=query.device)
    scores_launch(query, keys, rows, norms, row_mask, out).run()
    return out


def scores_launch(
    query: Tensor,
    keys: Tensor,
    rows: Tensor | None,
    norms: Tensor | None,
    row_mask: Tensor | None,
    out: Tensor,
) -> Launch:
    """Return the kernel launch, not yet run, that writes the scores to `out`.

    Args:
        query: Queries, `[Q, D]`.
        keys: Table of rows, `[N, D]`.
        rows: Indices of the R rows to score, `[R]`; None for all rows (then R = N).
        norms: Divisors of the scores, `[R]`, one per scored row.
        row_mask: True for rows that may be returned; other rows score -inf.
        out: Output, a score for each query and row.
    """
    query, keys = ensure_dense_rows(query), ensure_dense_rows(keys)
    row_indices, norms, row_mask = (None if t is None else t.contiguous() for t in (rows, norms, row_mask))
    tensors = {"query": query, "keys": keys, "rows": row_indices, "norms": norms, "row_mask": row_mask}
    tensors["scores"] = out
    numbers = {"Q": query.shape[0], "R": out.shape[1]}
    numbers |= {"query_q": query.stride(0), "keys_n": keys.stride(0)}
    constants = {"D": keys.shape[1], "BLOCK_R": _BLOCK_ROWS, "BLOCK_D": _BLOCK_WIDTH}
    grid = (triton.cdiv(out.shape[1], _BLOCK_ROWS),)
    return Launch.match(_scores_kernel, grid, tensors, numbers, constants)


def configurations() -> dict[str, Launch]:
    """Return example launches by name. They hold meta tensors, so they compile without a GPU."""
    launches = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):

        def empty(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(*sizes, dtype=dtype, device="meta")

        name = f"{str(dtype).removeprefix('torch.')}, D=384"
        query, keys = empty(1, 384), empty(65_536, 384)
        norms, row_mask = empty(65_536, dtype=torch.float32), empty(65_536, dtype=torch.bool)
        scores, some = empty(1, 65_536, dtype=torch.float32), empty(1, 4096, dtype=torch.float32)
        rows = empty(4096, dtype=torch.int64)
        launches[f"all rows: {name}"] = scores_launch(query, keys, None, norms, row_mask, scores)
        launches[f"listed rows: {name}"] = scores_launch(query, keys, rows, None, None, some)
    return launches

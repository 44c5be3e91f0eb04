"""Tensors that the chunk retrieval kernels read and write."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scrubjay.kernels.launch import ensure_dense_rows
from scrubjay.kernels.retrieval.problem import Reading


class AttentionOutputs(NamedTuple):
    """Outputs of the attention kernel."""

    out: Tensor
    """Read-out, `[B, T, H, V]`."""
    weights: Tensor
    """Softmax weights of the selected chunks, `[B, T, S, K]`."""
    normalisers: Tensor
    """Logsumexp over the steps of each chunk, `[B, T, H, K]`; if joint, over all chunks, `[B, T, H, 1]`."""
    lse: Tensor
    """Log normaliser that `chunk_retrieval` returns, `[B, T, H]`."""


class OutputGrads(NamedTuple):
    """Gradients of the read-out and of its log normaliser (None if that has no gradient)."""

    out: Tensor
    lse: Tensor | None


def pack_reading(reading: Reading) -> Reading:
    """Convert the tensors to the kernels' layout.

    Queries, keys and values get a contiguous last dim. Indices become int32. All other tensors become
    contiguous.
    """
    query, keys = ensure_dense_rows(reading.query), ensure_dense_rows(reading.keys)
    values = keys if reading.values is reading.keys else ensure_dense_rows(reading.values)
    positions, scores, lengths = reading.positions, reading.scores, reading.lengths
    if lengths is not None:
        lengths = lengths.clamp(0, keys.shape[2]).to(torch.int32).contiguous()
    return Reading(
        query,
        keys,
        values,
        reading.chunks.to(torch.int32).contiguous(),
        None if scores is None else scores.float().contiguous(),
        None if positions is None else positions.contiguous(),
        lengths,
    )

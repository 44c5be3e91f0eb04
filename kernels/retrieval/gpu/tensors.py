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
    """The read-out."""
    weights: Tensor
    """Softmax weights of the selected chunks, `[B, T, S, K]`."""
    normalisers: Tensor
    """Logsumexp of each softmax: `[B, T, H, K]`, one per chunk, or `[B, T, H, 1]` (joint)."""
    lse: Tensor
    """Logsumexp of the total read-out, `[B, T, H]`."""


class OutputGrads(NamedTuple):
    """Gradients of the read-out and of its normaliser (None if it has none)."""

    out: Tensor
    lse: Tensor | None


def pack_reading(reading: Reading) -> Reading:
    """Convert the tensors to the kernels' layout: dense last dimensions, int32 indices, others contiguous."""
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

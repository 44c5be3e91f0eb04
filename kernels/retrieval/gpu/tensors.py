"""The tensors that the kernels of chunk retrieval read and write."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scrubjay.kernels.launch import with_dense_rows
from scrubjay.kernels.retrieval.problem import Reading


class Filled(NamedTuple):
    """What the attention kernel writes."""

    out: Tensor
    """The read-out."""
    weights: Tensor
    """Of the chunks kept, `[B, T, S, K]`."""
    normalisers: Tensor
    """The logarithm of each softmax's sum: `[B, T, H, K]`, one a chunk, or `[B, T, H, 1]` (joint)."""
    lse: Tensor
    """That of the read-out as a whole, `[B, T, H]`."""


class Grads(NamedTuple):
    """Gradients that arrive: of the read-out, and of its normaliser if any does."""

    out: Tensor
    lse: Tensor | None


def ready(reading: Reading) -> Reading:
    """Return the tensors as kernels read them: widths contiguous, whole numbers int32, others packed."""
    query, keys = with_dense_rows(reading.query), with_dense_rows(reading.keys)
    values = keys if reading.values is reading.keys else with_dense_rows(reading.values)
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

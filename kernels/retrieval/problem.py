"""What one call of chunk retrieval is about; its letters are those of `chunk_retrieval`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """The tensors of one call, `valid` a mask."""

    query: Tensor
    keys: Tensor
    values: Tensor
    summaries: Tensor
    valid: Tensor
    summary_query: Tensor
    positions: Tensor | None
    lengths: Tensor | None

    @property
    def units(self) -> int:
        """Return U, the number of different pairs of selection and key head."""
        return math.lcm(self.summary_query.shape[2], self.keys.shape[3])

    @property
    def score_dtype(self) -> torch.dtype:
        """Return the dtype of the scores inside chunks and of their softmax."""
        return torch.promote_types(self.query.dtype, torch.float32)

    @property
    def coarse_dtype(self) -> torch.dtype:
        """Return the dtype of the chunks' scores."""
        return torch.promote_types(self.summary_query.dtype, torch.float32)


class Choice(NamedTuple):
    """How chunks are chosen and combined."""

    top_k: int
    joint: bool
    scale: float
    summary_scale: float
    num_sinks: int
    num_locals: int

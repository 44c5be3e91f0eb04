"""Feed-forward block of a layer, applied to each step independently."""

from __future__ import annotations

from torch import nn


def feed_forward(dim: int, hidden: int) -> nn.Sequential:
    """Return a layer norm, a linear layer from `dim` to `hidden`, GELU, and a linear layer back to `dim`."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

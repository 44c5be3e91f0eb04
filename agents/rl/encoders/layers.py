"""Layers that encoders share: numbers brought to [0, 1], and how linear ones and convolutions begin."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.shape import is_image


class Scale(nn.Module):
    """Maps integer and image boxes with finite bounds to [0, 1]; leaves all other numbers as they are."""

    def __init__(self, space: spaces.Space) -> None:
        super().__init__()
        self.low, self.range, self.bounded = 0.0, 1.0, False
        if isinstance(space, spaces.Box) and (is_image(space) or np.issubdtype(space.dtype, np.integer)):
            low, high = float(space.low.min()), float(space.high.max())
            if math.isfinite(low) and math.isfinite(high) and high > low:
                self.low, self.range, self.bounded = low, high - low, True

    def forward(self, values: Tensor) -> Tensor:
        """Return the scaled values, as floats where anything was to do."""
        if (self.low, self.range) == (0.0, 1.0):
            return values
        return (values.to(torch.float32) - self.low) / self.range


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that begins as encoders' do."""
    layer = nn.Linear(inputs, outputs)
    initialise(layer)
    return layer


def initialise(layer: nn.Linear | nn.Conv2d) -> None:
    """Let a layer begin with orthogonal weights, for an activation behind it, and no bias."""
    nn.init.orthogonal_(layer.weight, math.sqrt(2))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)

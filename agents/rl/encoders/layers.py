"""Layers shared by encoders: scaling to [0, 1] and initialization of linear and convolutional layers."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.shape import is_image


class Scale(nn.Module):
    """Layer that scales images and integers from the finite bounds of their Box space to [0, 1].

    All other values are unchanged.
    """

    def __init__(self, space: spaces.Space) -> None:
        super().__init__()
        self.low, self.range, self.is_bounded = 0.0, 1.0, False
        if isinstance(space, spaces.Box) and (is_image(space) or np.issubdtype(space.dtype, np.integer)):
            low, high = float(space.low.min()), float(space.high.max())
            if math.isfinite(low) and math.isfinite(high) and high > low:
                self.low, self.range, self.is_bounded = low, high - low, True

    def forward(self, values: Tensor) -> Tensor:
        """Return the scaled values as float32, or the values themselves if no scaling is needed."""
        if (self.low, self.range) == (0.0, 1.0):
            return values
        return (values.to(torch.float32) - self.low) / self.range


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a new linear layer with orthogonal weights of gain sqrt(2) and zero bias."""
    layer = nn.Linear(inputs, outputs)
    initialise(layer)
    return layer


def initialise(layer: nn.Linear | nn.Conv2d) -> None:
    """Initialize a layer that precedes an activation: orthogonal weights of gain sqrt(2), zero bias."""
    nn.init.orthogonal_(layer.weight, math.sqrt(2))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)

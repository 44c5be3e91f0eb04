"""Layers of both blocks of xLSTM: linear maps per block of channels, and a layer norm per head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_EPSILON = 1e-5


class BlockLinear(nn.Module):
    """Linear map without bias whose matrix is block diagonal.

    Args:
        dim: Number of channels of inputs and outputs.
        blocks: Number of blocks; divides `dim`.
    """

    def __init__(self, dim: int, blocks: int) -> None:
        super().__init__()
        width = dim // blocks
        self.blocks = blocks
        self.weight = nn.Parameter(torch.randn(blocks, width, width) * width**-0.5)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the product of every block of channels with its matrix."""
        x = x.unflatten(-1, (self.blocks, -1))
        return torch.einsum("...hi,hoi->...ho", x, self.weight).flatten(-2)


class HeadNorm(nn.Module):
    """Layer norm of each head, with one weight per channel and no bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch heads width"]) -> Float[Tensor, "*batch dim"]:
        """Return the normalized heads side by side, in the dtype of the weight."""
        x = functional.layer_norm(x.to(self.weight.dtype), x.shape[-1:], eps=_EPSILON)
        return x.flatten(-2) * self.weight

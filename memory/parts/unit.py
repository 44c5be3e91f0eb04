"""Vectors of unit length, nearly: what is compared by dot products alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_EPSILON = 1e-6


def unit(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Return `x` with vectors of at most unit length, nearly that."""
    return x * inverse_length(x)


def inverse_length(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 1"]:
    """Return what makes vectors of at most unit length, nearly that."""
    return torch.rsqrt((x * x).sum(-1, keepdim=True) + _EPSILON)

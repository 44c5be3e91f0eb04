"""Normalization of vectors to nearly unit length, for comparison by dot products."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_EPSILON = 1e-6


def normalize_vectors(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Return vectors scaled to just below unit length."""
    return x * inverse_norm(x)


def inverse_norm(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 1"]:
    """Return the factors that scale vectors to just below unit length."""
    return torch.rsqrt((x * x).sum(-1, keepdim=True) + _EPSILON)

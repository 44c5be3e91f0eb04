"""Sinusoidal encodings of step numbers or distances (Vaswani et al. 2017, section 3.5)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sinusoids(steps: Int[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape dim"]:
    """Return `dim` / 2 sines, then `dim` / 2 cosines, in float64, since steps may reach millions."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=steps.device)
    frequency = torch.exp(exponent * (-math.log(10_000.0) / dim))
    angle = steps[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)

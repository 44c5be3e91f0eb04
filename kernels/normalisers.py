"""Read-outs and the logarithms of their softmax's sums: what was read in parts, joined as if read at once.

A read-out over a set of keys and the logarithm of its normaliser (lse) are all that attention over a larger
set needs of it, so that parts may be read by different kernels, on different devices, or by the grouped
softmax of Landmark attention (Mohtashami & Jaggi 2023, arXiv 2305.16300).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Part = tuple[Float[Tensor, "*batch V"], Float[Tensor, "*batch"]]
"""A read-out and the logarithm of its softmax's sum, -inf where nothing was read."""


def merge(parts: Sequence[Part]) -> Float[Tensor, "*batch V"]:
    """Return the read-outs joined by their log-normalisers, exact zeros where all parts are empty.

    Gradients flow through both. What an empty part read may be anything, NaN included. Raises ValueError
    where there is no part or shapes differ.
    """
    if not parts:
        raise ValueError("merge got no parts; give at least one pair of a read-out and its lse")
    for out, lse in parts:
        if out.shape != parts[0][0].shape or lse.shape != out.shape[:-1]:
            raise ValueError(
                f"a read-out of shape {tuple(out.shape)} has an lse of {tuple(lse.shape)}, the first is "
                f"{tuple(parts[0][0].shape)}; read-outs must be alike, [..., V], and each lse [...]"
            )
    weights = softmax_or_zero(torch.stack([lse for _, lse in parts], dim=-1))
    total = torch.zeros_like(parts[0][0])
    for i, (out, lse) in enumerate(parts):
        read = out.masked_fill((lse == -math.inf)[..., None], 0)
        total = total + (read * weights[..., i, None]).to(total.dtype)
    return total


def softmax_or_zero(scores: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
    """Softmax over the last dim where -inf means absent; all absent gives zeros, not NaN, in both passes."""
    absent = scores == -math.inf
    weights = torch.softmax(scores.masked_fill(absent.all(dim=-1, keepdim=True), 0.0), dim=-1)
    return weights.masked_fill(absent, 0.0)


def log_normaliser(scores: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch"]:
    """Logarithm of the softmax's sum over the last dim, -inf where all are; its gradient is never NaN."""
    if scores.shape[-1] == 0:
        return scores.new_full(scores.shape[:-1], -math.inf)
    absent = (scores == -math.inf).all(dim=-1)
    return torch.logsumexp(scores.masked_fill(absent[..., None], 0.0), dim=-1).masked_fill(absent, -math.inf)

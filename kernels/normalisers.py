"""Merge of attention outputs that were computed on parts of a set of keys.

The outputs of the parts, and the log-sum-exp (lse) of the scores in each part, determine the attention over
all keys. So different kernels or devices may read different parts. The grouped softmax of Landmark attention
(Mohtashami & Jaggi 2023, arXiv 2305.16300) is merged in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Part = tuple[Float[Tensor, "*batch V"], Float[Tensor, "*batch"]]
"""Attention output and the log-sum-exp of its scores, -inf if the part is empty."""


def merge(parts: Sequence[Part]) -> Float[Tensor, "*batch V"]:
    """Return the attention output over the keys of all parts; exact zeros where all parts are empty.

    Gradients flow through outputs and lse values. A part with an lse of -inf is empty. Its output is ignored,
    even if it is NaN.

    Raises:
        ValueError: If there are no parts or shapes differ.
    """
    if not parts:
        raise ValueError("parts=[]: merge got no parts; pass at least one pair of an output and its lse")
    for out, lse in parts:
        if out.shape != parts[0][0].shape or lse.shape != out.shape[:-1]:
            raise ValueError(
                f"a part has an output of shape {tuple(out.shape)} and an lse of {tuple(lse.shape)}; "
                f"expected {tuple(parts[0][0].shape)} and {tuple(parts[0][0].shape[:-1])}, as in the first "
                "output"
            )
    weights = softmax_or_zero(torch.stack([lse for _, lse in parts], dim=-1))
    total = torch.zeros_like(parts[0][0])
    for i, (out, lse) in enumerate(parts):
        read = out.masked_fill((lse == -math.inf)[..., None], 0)
        total = total + (read * weights[..., i, None]).to(total.dtype)
    return total


def softmax_or_zero(scores: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
    """Return the softmax over the last dim; zeros where all scores are -inf.

    Scores of -inf cause no NaN, neither in the result nor in the gradient.
    """
    absent = scores == -math.inf
    weights = torch.softmax(scores.masked_fill(absent.all(dim=-1, keepdim=True), 0.0), dim=-1)
    return weights.masked_fill(absent, 0.0)


def log_normaliser(scores: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch"]:
    """Return the log-sum-exp over the last dim; -inf where all scores are -inf.

    Scores of -inf cause no NaN in the gradient.
    """
    if scores.shape[-1] == 0:
        return scores.new_full(scores.shape[:-1], -math.inf)
    absent = (scores == -math.inf).all(dim=-1)
    return torch.logsumexp(scores.masked_fill(absent[..., None], 0.0), dim=-1).masked_fill(absent, -math.inf)

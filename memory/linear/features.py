"""Features of queries and keys: what they are to a memory that compares by dot products."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.kernels.dispatch import without_autocast


class Taylor(nn.Module):
    """Features whose product is the exponential's series up to the second order: 1 + s + s^2 / 2.

    With d the width, s = q . k / sqrt(d), and features 1, x_i / d^(1/4), x_i^2 / sqrt(2 d), and x_i x_j /
    sqrt(d) for i < j. The published code has each of the latter twice: 273 of d = 16, where these are 153.
    """

    left: Tensor
    right: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**-0.25
        pairs = torch.triu_indices(width, width, 1)
        # Chosen by a product, whose gradient is one, too; that of an index is a sum over places.
        for name, chosen in zip(("left", "right"), pairs, strict=True):
            choice = nn.functional.one_hot(chosen, width).T.to(torch.get_default_dtype())
            self.register_buffer(name, choice.contiguous(), persistent=False)
        self.count = 1 + 2 * width + pairs.shape[1]

    @without_autocast
    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch features"]:
        """Return the features of vectors."""
        x = x * self.scale
        products = (x @ self.left.to(x.dtype)) * (x @ self.right.to(x.dtype))
        return torch.cat([torch.ones_like(x[..., :1]), x, x * x * 0.5**0.5, products], dim=-1)

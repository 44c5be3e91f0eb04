"""Feature maps of queries and keys for linear attention."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.kernels.dispatch import without_autocast


class Taylor(nn.Module):
    """Feature map whose dot product is the second-order Taylor series of exp: 1 + s + s^2 / 2.

    Here s = q . k / sqrt(d) for a query q and a key k of width d. The features of a vector x are 1,
    x_i / d^(1/4), x_i^2 / sqrt(2 d), and x_i x_j / sqrt(d) for i < j. The published code of BASED stores each
    product x_i x_j twice. For d = 16, it has 273 features and this map has 153.
    """

    left: Tensor
    right: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**-0.25
        pairs = torch.triu_indices(width, width, 1)
        # Select pairs by a matrix product: its gradient is another product. The gradient of indexing is a
        # scatter-add.
        for name, indices in zip(("left", "right"), pairs, strict=True):
            selection = nn.functional.one_hot(indices, width).T.to(torch.get_default_dtype())
            self.register_buffer(name, selection.contiguous(), persistent=False)
        self.count = 1 + 2 * width + pairs.shape[1]

    @without_autocast
    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch features"]:
        """Return the features of `x`."""
        x = x * self.scale
        products = (x @ self.left.to(x.dtype)) * (x @ self.right.to(x.dtype))
        return torch.cat([torch.ones_like(x[..., :1]), x, x * x * 0.5**0.5, products], dim=-1)

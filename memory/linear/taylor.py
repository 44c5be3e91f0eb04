"""Linear attention with second-order Taylor features of exp: the linear part of BASED.

Arora et al. 2024 (arXiv 2402.18668, section 4.1). For a query q and a key k of width d, let s = q . k /
sqrt(d). The features phi satisfy phi(q) . phi(k) = 1 + s + s^2 / 2, which is at least 1/2. With the value v_i
of step i, the output y_t of step t is

    y_t = (sum over i <= t of phi(q_t) . phi(k_i) v_i) / (sum over i <= t of phi(q_t) . phi(k_i) + 1e-6).

The kernel is `kernels.linear_memory` with the rule "hebbian", write strength 1 and no decay. Each value has
an additional coordinate of 1, so that the same product computes the denominator.

Differences from the paper: each product of two coordinates is stored once, not twice (see
`Taylor`). The feed-forward block has GELU and no gate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.kernels.dispatch import without_autocast
from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.linear.layers import HebbianLayer, LayeredMemory, LinearTokens
from scrubjay.memory.parts.layers import feed_forward
from scrubjay.memory.parts.window import count_heads

_EPSILON = 1e-6


@dataclass(frozen=True)
class TaylorConfig(MemoryConfig):
    """Configuration of `TaylorMemory`. Raises ValueError on an invalid size."""

    num_heads: int | None = None
    """Number of heads. Default: the smallest number whose heads are 8 to 64 wide; 1 if there is none."""
    feature_width: int = 16
    """Width d of a head's queries and keys. The feature map has 1 + 2 d + d (d - 1) / 2 features."""
    feed_forward_ratio: int = 2
    """Hidden width of the feed-forward block, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("feature_width", "feed_forward_ratio")
        count_heads(self.dim, self.num_heads)

    def build(self) -> TaylorMemory:
        """Return a newly initialized memory."""
        return TaylorMemory(self)


class TaylorMemory(LayeredMemory["TaylorLayer"]):
    """One layer of linear attention with second-order Taylor features, followed by a feed-forward block.

    State: the entries of `TaylorLayer`, with the suffix `_0`.
    """

    in_place = True

    def __init__(self, config: TaylorConfig) -> None:
        super().__init__(config, [TaylorLayer(config)])


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


class TaylorLayer(HebbianLayer):
    """Linear attention and a feed-forward block, both pre-norm with a residual connection.

    State: `matrix` `[batch, heads, features, width + 1]`, the sum of phi(k) (v, 1)^T over the steps of the
    episode. phi(k) are the features of the key k. (v, 1) is the value v with an additional coordinate, a 1.
    """

    def __init__(self, config: TaylorConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.feed_forward_ratio * config.dim
        self.heads = count_heads(dim, config.num_heads)
        self.width = dim // self.heads
        self.features = Taylor(config.feature_width)
        self.matrix_shape = self.heads, self.features.count, self.width + 1
        self.norm = nn.LayerNorm(dim)
        self.query_key = nn.Linear(dim, 2 * self.heads * config.feature_width, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.feed_forward = feed_forward(dim, hidden)

    def _tokens(self, x: Float[Tensor, "*batch dim"], dtype: torch.dtype) -> tuple[LinearTokens, None]:
        normed_x = self.norm(x)
        queries_keys = self.query_key(normed_x).to(dtype).unflatten(-1, (2, self.heads, -1))
        query, key = self.features(queries_keys).unbind(-3)
        value = self.value(normed_x).to(dtype).unflatten(-1, (self.heads, self.width))
        value = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
        ones = torch.ones_like(query[..., 0])
        return LinearTokens(query, key, value, torch.zeros_like(ones), ones), None

    def _finish(self, x: Tensor, gate: None, y: Float[Tensor, "*batch heads wider"]) -> Tensor:
        y = (y[..., :-1] / (y[..., -1:] + _EPSILON)).flatten(-2)
        x = x + self.out(y.to(self.out.weight.dtype))
        return x + self.feed_forward(x)

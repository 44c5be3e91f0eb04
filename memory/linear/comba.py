"""Comba: Gated DeltaNet that erases less than it writes, and reads with a corrected query.

Hu et al. 2025 (arXiv 2506.02475, section 3.2), in the variant with a decay per head (Comba-SPLR). With the
matrix S, log decay g, write strength b, key k, value v, query q and output y of a head,

    S_t = exp(g_t) S_{t-1} + b_t k_t (v_t - e exp(g_t) S_{t-1}^T k_t)^T,    y_t = S_t^T (q_t - d e k_t).

The erasure e in (0, 1) and the correction d are learned, one value of each per head. With e = 1 and d = 0,
this is `gated_delta` with `read_before_write=False`. The kernel is `kernels.linear_memory` with the erase key
e k. Everything else is as in `memory/linear/gated_delta.py`, whose docstring applies here as well.

The published code normalizes the erase key, which removes e. This module follows the paper's equations. d
starts at 0.02, the authors' choice for small models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.memory.contract.base import MemoryConfig, PaperValues
from scrubjay.memory.linear.gated_delta import GatedDeltaConfig, GatedDeltaLayer
from scrubjay.memory.linear.layers import LayeredMemory, LinearTokens
from scrubjay.memory.parts.window import count_heads

_CORRECTION = 0.02


@dataclass(frozen=True)
class CombaConfig(MemoryConfig):
    """Configuration of `Comba`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {"epsilon": 1e-5}

    num_layers: int = 1
    """Number of layers, each with its own memory."""
    num_heads: int | None = None
    """Heads per layer. Default: the smallest number whose heads are 8 to 64 wide; 1 if there is none."""
    convolution: int = 4
    """Number of steps in the causal convolution of keys, queries and values. With 1, a step uses only its
    own input."""
    feed_forward_ratio: int = 2
    """Hidden width of the feed-forward block, in units of `dim`."""
    epsilon: float = 1e-4
    """Number that the output norm adds to the mean square of a head's outputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("num_layers", "convolution", "feed_forward_ratio")
        self.check_above_zero("epsilon")
        count_heads(self.dim, self.num_heads)

    def build(self) -> Comba:
        """Return a newly initialized memory."""
        return Comba(self)


class CombaLayer(GatedDeltaLayer):
    """Layer of Gated DeltaNet with a scaled erase key and a corrected query.

    State: that of `GatedDeltaLayer`.
    """

    def __init__(self, config: CombaConfig) -> None:
        super().__init__(
            GatedDeltaConfig(
                config.dim,
                num_heads=config.num_heads,
                convolution=config.convolution,
                read_before_write=False,
                feed_forward_ratio=config.feed_forward_ratio,
                epsilon=config.epsilon,
            )
        )
        # Its sigmoid is the erasure; as in the published code.
        self.erasure = nn.Parameter(torch.ones(self.heads))
        self.correction = nn.Parameter(torch.full((self.heads,), _CORRECTION))

    def scale_erase_keys(self, key: Float[Tensor, "*batch heads width"]) -> Tensor:
        """Return the keys times the erasure of their head."""
        return key * torch.sigmoid(self.erasure.to(key.dtype))[:, None]

    def project_tokens(
        self, x: Float[Tensor, "batch time dim"], tail: Tensor, start: Tensor | None
    ) -> tuple[LinearTokens, Float[Tensor, "batch time dim"], Tensor]:
        """Return the kernel inputs, the normed inputs, and the last inputs of the convolution."""
        tokens, normed_x, tail = super().project_tokens(x, tail, start)
        correction = self.correction.to(tokens.key.dtype)[:, None] * self.scale_erase_keys(tokens.key)
        return tokens._replace(query=tokens.query - correction), normed_x, tail


class Comba(LayeredMemory["CombaLayer"]):
    """Stack of Comba and feed-forward layers.

    State: the entries of `CombaLayer` for every layer l, with the suffix `_l`.
    """

    in_place = True

    def __init__(self, config: CombaConfig) -> None:
        super().__init__(config, [CombaLayer(config) for _ in range(config.num_layers)])

"""Small layers and functions that several memories share: feed-forward, positions, norms and convolution."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.memory.contract.clock import Clock, shift_window

_EPSILON = 1e-6


def feed_forward(dim: int, hidden: int) -> nn.Sequential:
    """Return a layer norm, a linear layer from `dim` to `hidden`, GELU, and a linear layer back to `dim`."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


def sinusoids(steps: Int[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape dim"]:
    """Return sinusoidal encodings of step numbers or distances (Vaswani et al. 2017, section 3.5).

    They are `dim` / 2 sines, then `dim` / 2 cosines, in float64, since steps may reach millions.
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=steps.device)
    frequency = torch.exp(exponent * (-math.log(10_000.0) / dim))
    angle = steps[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def normalize_vectors(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Return vectors scaled to just below unit length."""
    return x * inverse_norm(x).to(x.dtype)


def inverse_norm(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 1"]:
    """Return the factors that scale vectors to just below unit length, in at least float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.rsqrt((x * x).sum(-1, keepdim=True) + _EPSILON)


class ShortConvolution(nn.Module):
    """Causal depthwise convolution: a weighted sum of the last `width` inputs per channel.

    Before a memory, it combines neighboring inputs, such as a key and the value after it. Several sequence
    models have such a convolution before the layer that mixes steps (Poli et al. 2023, arXiv 2302.10866;
    Arora et al. 2024, arXiv 2402.18668). The weight of the present input starts at 1.

    The state `[batch, width - 1, dim]` holds the inputs before the present one, zeros before the first input.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim, self.width = dim, width
        weight = torch.randn(width, dim) * width**-0.5
        weight[0] = 1
        self.weight = nn.Parameter(weight)

    def initial_state(self, batch_size: int) -> Float[Tensor, "batch before dim"]:
        """Return zeros, in the parameters' dtype but at least float32."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return torch.zeros(batch_size, self.width - 1, self.dim, dtype=dtype, device=self.weight.device)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        before: Float[Tensor, "batch before dim"],
        start: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch before dim"]]:
        """Return the weighted sums, and the state after the last input.

        Inputs before a `start` do not enter the sums of later steps.
        """
        time, reach = x.shape[1], self.width - 1
        if time == 0:
            return x, before
        inputs = torch.cat([before, x.to(before.dtype)], dim=1)
        # With this age all of `before` counts; it is zero where there were no inputs.
        age = torch.full_like(x[:, 0, 0], reach, dtype=torch.int64)
        clock = Clock.from_age(age, time) if start is None else Clock.from_starts(age, start)
        y = x.to(before.dtype) * self.weight[0]
        for lag in range(1, self.width):
            in_episode = (clock.step >= lag)[..., None]
            y = y + torch.where(in_episode, inputs[:, reach - lag : reach - lag + time], 0) * self.weight[lag]
        return y.to(x.dtype), shift_window(before, x, clock)

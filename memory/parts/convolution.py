"""A short causal convolution over time, one filter per channel, with its last inputs for a state.

It lets neighbours meet, a key and the value behind it, before a memory sees them. Sequence models of several
kinds have one before they mix (Poli et al. 2023, arXiv 2302.10866; Arora et al. 2024, arXiv 2402.18668).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.recent import shift_window


class ShortConvolution(nn.Module):
    """Sums the last `width` inputs of a sequence, each channel by its own weights, the present's at first 1.

    State: `[batch, width - 1, dim]`, the inputs before the present one, zeros where there were none.
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
        """Return the sums and the state after the last input; none reaches back beyond `start`."""
        time, reach = x.shape[1], self.width - 1
        if time == 0:
            return x, before
        inputs = torch.cat([before, x.to(before.dtype)], dim=1)
        # As old as need be for all of `before` to count, which is zero where there was nothing.
        age = torch.full_like(x[:, 0, 0], reach, dtype=torch.int64)
        clock = Clock.running(age, time) if start is None else Clock.of(age, start)
        y = x.to(before.dtype) * self.weight[0]
        for lag in range(1, self.width):
            seen = (clock.step >= lag)[..., None]
            y = y + torch.where(seen, inputs[:, reach - lag : reach - lag + time], 0) * self.weight[lag]
        return y.to(x.dtype), shift_window(before, x, clock)

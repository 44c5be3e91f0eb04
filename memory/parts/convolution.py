"""A short causal convolution over time, one filter per channel, with its last inputs for a state.

It lets neighbours meet, a key and the value behind it, before a memory sees them. Sequence models of several
kinds have one before they mix (Poli et al. 2023, arXiv 2302.10866; Arora et al. 2024, arXiv 2402.18668).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


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
        inputs = torch.cat([before, x.to(before.dtype)], dim=1)
        earlier = torch.zeros_like(before[..., 0], dtype=torch.long)
        now = torch.zeros_like(x[..., 0], dtype=torch.long) if start is None else start.cumsum(dim=1)
        sequence = torch.cat([earlier, now], dim=1)
        y = x.to(before.dtype) * self.weight[0]
        for lag in range(1, self.width):
            place = slice(reach - lag, reach - lag + time)
            same = (sequence[:, place] == sequence[:, reach:])[..., None]
            y = y + torch.where(same, inputs[:, place], 0) * self.weight[lag]
        same = (sequence[:, time:] == sequence[:, -1:])[..., None]
        return y.to(x.dtype), torch.where(same, inputs[:, time:], 0)

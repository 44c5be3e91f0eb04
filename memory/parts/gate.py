"""The gate of a gated transformer, with its gradient by hand: a dozen operations each way.

tanh(a) is taken as 2 σ(2 a) - 1, which is four times as fast, to the same absolute precision.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels.derivatives import by_graph, has_own_gradient, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast


class Gate(nn.Module):
    """The GRU-type gate that takes a residual connection's place (section 3.2, "Gated-Recurrent-Unit-type").

    r = σ(W_r y + U_r x), z = σ(W_z y + U_z x - b), h = tanh(W y + U (r * x)); returns (1 - z) * x + z * h.
    """

    def __init__(self, dim: int, bias: float) -> None:
        super().__init__()
        self.update = nn.Linear(dim, 3 * dim, bias=False)
        self.stream = nn.Linear(dim, 2 * dim, bias=False)
        self.reset_stream = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.full((dim,), float(bias)))

    def forward(self, x: Float[Tensor, "... dim"], y: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Return the stream `x` after the sublayer's output `y` has been let in."""
        weights = self.update.weight, self.stream.weight, self.reset_stream.weight, self.bias
        return gated(x, y, *weights)


def gated(
    x: Float[Tensor, "... dim"],
    y: Float[Tensor, "... dim"],
    update: Float[Tensor, "3*dim dim"],
    stream: Float[Tensor, "2*dim dim"],
    reset_stream: Float[Tensor, "dim dim"],
    bias: Float[Tensor, " dim"],
) -> Float[Tensor, "... dim"]:
    """Return (1 - z) * x + z * h, where h = tanh(W y + U (r * x)).

    r = σ(W_r y + U_r x), z = σ(W_z y + U_z x - b).

    Args:
        x: The stream.
        y: What asks to be let in.
        update: W_r, W_z and W.
        stream: U_r and U_z.
        reset_stream: U.
        bias: b.
    """
    given = x, y, update, stream, reset_stream, bias
    return _Gated.apply(*given) if has_own_gradient(*given) else _by_torch(*given)


def _by_torch(
    x: Tensor, y: Tensor, update: Tensor, stream: Tensor, reset_stream: Tensor, bias: Tensor
) -> Tensor:
    reset_y, gate_y, candidate_y = functional.linear(y, update).chunk(3, dim=-1)
    reset_x, gate_x = functional.linear(x, stream).chunk(2, dim=-1)
    reset = torch.sigmoid(reset_y + reset_x)
    gate = torch.sigmoid(gate_y + gate_x - bias)
    candidate = torch.tanh(candidate_y + functional.linear(reset * x, reset_stream))
    # Under autocast the products are narrower than the stream, which keeps its dtype.
    return torch.lerp(x, candidate.to(x.dtype), gate.to(x.dtype))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, y, update, stream, reset_stream, bias):
        dim = x.shape[-1]
        rows, others = x.reshape(-1, dim), y.reshape(-1, dim)
        both = torch.mm(others, update[: 2 * dim].T).addmm_(rows, stream.T)
        both[:, dim:] -= bias
        reset, gate = both.sigmoid_().split(dim, dim=1)
        kept = reset * rows
        candidate = torch.mm(others, update[2 * dim :].T).addmm_(kept, reset_stream.T)
        candidate.mul_(2).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(x, y, update, stream, reset_stream, bias, both, kept, candidate)
        return torch.lerp(rows, candidate, gate).view(x.shape)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        *given, both, kept, candidate = ctx.saved_tensors
        if is_wanted_again(grad):
            return tuple(by_graph(_by_torch, given, grad))
        x, y, update, stream, reset_stream, _ = given
        dim = x.shape[-1]
        rows, others, grad = x.reshape(-1, dim), y.reshape(-1, dim), grad.reshape(-1, dim)
        reset, gate = both.split(dim, dim=1)
        # Of what is in the functions: σ' = σ (1 - σ), tanh' = 1 - tanh².
        opened = grad * gate
        of_candidate = torch.addcmul(opened, opened * candidate, candidate, value=-1)
        of_kept = torch.mm(of_candidate, reset_stream)
        slopes = torch.addcmul(both, both, both, value=-1)
        of_both = torch.empty_like(both)
        torch.mul(of_kept, rows, out=of_both[:, :dim])
        torch.mul(grad, candidate - rows, out=of_both[:, dim:])
        of_both.mul_(slopes)
        of_x = (grad - opened).addcmul_(of_kept, reset).addmm_(of_both, stream)
        of_y = torch.mm(of_both, update[: 2 * dim]).addmm_(of_candidate, update[2 * dim :])
        return (
            of_x.view(x.shape),
            of_y.view(x.shape),
            torch.cat([of_both.T @ others, of_candidate.T @ others]),
            of_both.T @ rows,
            of_candidate.T @ kept,
            -of_both[:, dim:].sum(dim=0),
        )

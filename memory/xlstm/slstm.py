"""sLSTM: an LSTM cell with exponential gates, a normalizer and recurrent weights inside heads.

Beck et al. 2024 (arXiv 2405.04517, section 2.2 and appendix A.1). With the input gate i, the forget gate f,
the candidate z and the output gate o of a channel, which are linear functions of the input and of y_{t-1},

    c_t = sigmoid(f_t) c_{t-1} + exp(i_t) tanh(z_t),    n_t = sigmoid(f_t) n_{t-1} + exp(i_t),
    y_t = sigmoid(o_t) c_t / n_t.

exp(i) can overflow. The paper stores c and n as multiples of exp(m) for a stabilizer m. This module stores
the quotient h = c / n and the logarithm s = log n, which are independent of m:

    u_t = i_t - log sigmoid(f_t) - s_{t-1},    s_t = i_t + softplus(-u_t),
    h_t = h_{t-1} + sigmoid(u_t) (tanh(z_t) - h_{t-1}),    y_t = sigmoid(o_t) h_t.

The block is that of figure 9: i and f see the input after a convolution and SiLU, z and o the input itself,
by linear maps per head. y is normalized per head. A gated feed-forward block follows.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels.derivatives import differentiate_graph, needs_graph
from scrubjay.kernels.dispatch import needs_plain_autograd, without_autocast
from scrubjay.memory.contract.base import State
from scrubjay.memory.parts.layers import ShortConvolution
from scrubjay.memory.xlstm.parts import HeadNorm

# log n before the first step, where n is 0: far below all gates, and small enough for sums of squares.
_EMPTY = -1e6
# Factors of the gates i, f, z and o in `run_cells`.
_SCALES = (1.0, -1.0, 1.0, 0.5)


class SLSTMBlock(nn.Module):
    """sLSTM block and a gated feed-forward block, both pre-norm with a residual connection.

    State: `hidden` `[batch, dim]` is y, `cell` `[batch, dim]` is h, and `log_norm` `[batch, dim]` is s.
    `tail` `[batch, convolution - 1, dim]` holds the last inputs of the convolution.

    Args:
        dim: Width of inputs and outputs.
        heads: Number of heads.
        convolution: Number of steps in the causal convolution.
        hidden: Hidden width of the feed-forward block.
    """

    def __init__(self, dim: int, heads: int, convolution: int, hidden: int) -> None:
        super().__init__()
        self.heads, width = heads, dim // heads
        self.norm = nn.LayerNorm(dim, bias=False)
        self.convolution = ShortConvolution(dim, convolution)
        self.convolution_bias = nn.Parameter(torch.zeros(dim))
        # Weights of i, f, z and o, from the inputs of a head and from its hidden vector.
        self.weight = nn.Parameter(torch.randn(heads, width, 4, width) * width**-0.5)
        self.recurrent = nn.Parameter(torch.zeros(heads, width, 4, width))
        self.bias = nn.Parameter(torch.zeros(heads, 4, width))
        self.out_norm = HeadNorm(dim)
        self.feed_norm = nn.LayerNorm(dim, bias=False)
        self.feed_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.feed_out = nn.Linear(hidden, dim, bias=False)
        with torch.no_grad():
            self.convolution.weight[1:] *= 0.2
            # As in the published code: forget gates from sigmoid(5) down to sigmoid(-7) in each head.
            self.bias[:, 1] = 5 - 12 * (torch.arange(width) / max(1, width - 1)) ** 0.3

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the initial state of the block: zeros, and the logarithm of an empty normalizer."""
        tail = self.convolution.initial_state(batch_size)
        hidden = torch.zeros(batch_size, tail.shape[-1], dtype=dtype, device=tail.device)
        return {"hidden": hidden, "cell": hidden.clone(), "log_norm": hidden + _EMPTY, "tail": tail}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state."""
        start = torch.zeros_like(x[:, :1], dtype=torch.bool)
        y, after = self.segment(x[:, None], state, start)
        return y[:, 0], after

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state."""
        h = self.norm(x)
        features, tail = self.convolution(h, state["tail"], start)
        features = functional.silu(features + self.convolution_bias)
        gates, recurrent = self._project_gates(features, h, state["hidden"].dtype)
        names = ("hidden", "cell", "log_norm")
        before, cell, log_norm = (
            state[name].unflatten(-1, (self.heads, -1)).transpose(0, 1) for name in names
        )
        hidden, *last = run_cells(gates, start, before, cell, log_norm, recurrent)
        last = (x.transpose(0, 1).flatten(1) for x in (hidden[:, -1], *last))
        # Copies: a view would keep the whole segment in memory and be serialized with it.
        copies = (value.clone(memory_format=torch.contiguous_format) for value in last)
        x = x + self.out_norm(hidden.permute(2, 1, 0, 3)).to(x.dtype)
        gate, value = self.feed_in(self.feed_norm(x)).chunk(2, dim=-1)
        x = x + self.feed_out(functional.gelu(gate) * value)
        return x, dict(zip(names, copies, strict=True)) | {"tail": tail}

    def _project_gates(
        self, features: Tensor, h: Tensor, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "heads time batch gate_width"], Float[Tensor, "heads width gate_width"]]:
        """Return the gates without the part of the hidden vector, and the weights of the hidden vector.

        One product serves all gates: i and f see the features and zeros, z and o zeros and the input.
        """
        batch, time, _ = h.shape
        scale = self.bias.new_tensor(_SCALES).to(dtype)[:, None]
        weight, recurrent, bias = (
            (x.to(dtype) * scale).flatten(-2) for x in (self.weight, self.recurrent, self.bias)
        )
        inner, outer = weight.chunk(2, dim=-1)
        rows = [
            torch.cat([inner, torch.zeros_like(inner)], -1),
            torch.cat([torch.zeros_like(outer), outer], -1),
        ]
        inputs = torch.cat([part.unflatten(-1, (self.heads, -1)) for part in (features, h)], dim=-1)
        inputs = inputs.permute(2, 1, 0, 3).reshape(self.heads, time * batch, inputs.shape[-1]).to(dtype)
        gates = torch.baddbmm(bias[:, None], inputs, torch.cat(rows, dim=1)).to(dtype)
        return gates.view(self.heads, time, batch, bias.shape[-1]), recurrent


@without_autocast
def run_cells(
    gates: Float[Tensor, "heads time batch gate_width"],
    start: Bool[Tensor, "batch time"],
    hidden: Float[Tensor, "heads batch width"],
    cell: Float[Tensor, "heads batch width"],
    log_norm: Float[Tensor, "heads batch width"],
    recurrent: Float[Tensor, "heads width gate_width"],
) -> tuple[
    Float[Tensor, "heads time batch width"],
    Float[Tensor, "heads batch width"],
    Float[Tensor, "heads batch width"],
]:
    """Return the hidden vectors after every step, and the last cell and log normalizer.

    The gates of a step are i, -f, z and o / 2, in this order: log sigmoid(f) is -softplus(-f), and sigmoid(o)
    is (1 + tanh(o / 2)) / 2, so one tanh serves z and o.

    Args:
        gates: Parts of the gates that do not depend on the hidden vector.
        start: Mask of the steps that begin an episode.
        hidden: Hidden vector before the first step.
        cell: Cell before the first step.
        log_norm: Log normalizer before the first step.
        recurrent: Weights from the hidden vector of a head to its gates.
    """
    tensors = (gates, hidden, cell, log_norm, recurrent)
    if gates.is_cuda or 0 in gates.shape or needs_plain_autograd(*tensors):
        return run_reference(start, *tensors)
    return _Cells.apply(start, *tensors)  # pyright: ignore[reportReturnType]


def run_reference(
    start: Tensor, gates: Tensor, hidden: Tensor, cell: Tensor, log_norm: Tensor, recurrent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of `run_cells` by the equations above, step by step.

    Args:
        start: Mask of the steps that begin an episode.
        gates: Parts of the gates that do not depend on the hidden vector.
        hidden: Hidden vector before the first step.
        cell: Cell before the first step.
        log_norm: Log normalizer before the first step.
        recurrent: Weights from the hidden vector of a head to its gates.
    """
    results = []
    for t in range(gates.shape[1]):
        begins = start[:, t, None]
        hidden, cell = hidden.masked_fill(begins, 0), cell.masked_fill(begins, 0)
        log_norm = log_norm.masked_fill(begins, _EMPTY)
        i, minus_f, z, half_o = (gates[:, t] + hidden @ recurrent).chunk(4, dim=-1)
        u = i + functional.softplus(minus_f) - log_norm
        # Not logaddexp: its second derivative is NaN for an empty normalizer.
        log_norm = i - functional.logsigmoid(u)
        cell = torch.lerp(cell, torch.tanh(z), torch.sigmoid(u))
        hidden = torch.sigmoid(2 * half_o) * cell
        results.append(hidden)
    y = torch.stack(results, dim=1) if results else gates[..., : hidden.shape[-1]]
    return y, cell, log_norm


class _Cells(torch.autograd.Function):
    """Function from gates to the results of `run_cells`, with a custom backward pass.

    A step takes nine operations forward and nine backward. The loop computes twice the hidden vector.
    """

    @staticmethod
    def forward(ctx, start, gates, hidden, cell, log_norm, recurrent):
        heads, time, batch, _ = gates.shape
        width = hidden.shape[-1]
        resets = start.any(dim=0).tolist()
        weight = 0.5 * recurrent
        values = gates.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        parts = values.unflatten(-1, (4, width))
        shares, cells, after = (gates.new_empty(time, heads, batch, width) for _ in range(3))
        h, c, s = 2 * hidden, cell, log_norm
        steps = zip(
            resets,
            start.T[..., None].unbind(),
            values.unbind(),
            *(part.unbind() for part in parts.unbind(3)),
            parts[..., 2:, :].unbind(),
            shares.unbind(),
            cells.unbind(),
            after.unbind(),
            strict=True,
        )
        for reset, begins, gate, i, minus_f, z, half_o, outer, share, new_c, new_h in steps:
            if reset:
                h, c, s = h.masked_fill(begins, 0), c.masked_fill(begins, 0), s.masked_fill(begins, _EMPTY)
            gate.baddbmm_(h, weight)
            log_rest = s - functional.softplus(minus_f)
            torch.sigmoid(i - log_rest, out=share)
            s = torch.logaddexp(i, log_rest)
            outer.tanh_()
            c = torch.lerp(c, z, share, out=new_c)
            h = torch.addcmul(c, c, half_o, out=new_h)
        ctx.save_for_backward(start, gates, hidden, cell, log_norm, recurrent, parts, shares, cells, after)
        ctx.resets = resets
        return (0.5 * after).transpose(0, 1), c.clone(), s

    @staticmethod
    @without_autocast
    def backward(ctx, grad, grad_cell, grad_log_norm):
        start, *tensors, parts, shares, cells, after = ctx.saved_tensors
        if needs_graph(grad, grad_cell, grad_log_norm):
            grads = differentiate_graph(
                lambda *tensors: run_reference(start, *tensors), tensors, grad, grad_cell, grad_log_norm
            )
            return None, *grads
        _, hidden, cell, _, recurrent = tensors
        time, heads, batch, width = after.shape
        weight, begins = 0.5 * recurrent, start.T[:, None, :, None]
        _, minus_f, z, o = parts.unbind(3)
        cells_before = torch.cat([cell[None], cells[:-1]]).masked_fill_(begins, 0)
        # Factors from the gradients of cell, log normalizer and hidden vector to those of the gates.
        slopes = after.new_empty(time, heads, batch, 4, width)
        to_i, to_f, to_z, to_o = slopes.unbind(3)
        keep = 1 - shares
        torch.mul(z - cells_before, shares * keep, out=to_i)
        torch.neg(torch.sigmoid(minus_f), out=to_f)
        torch.mul(1 - z * z, shares, out=to_z)
        torch.mul(1 - o * o, cells, out=to_o)
        openings = 1 + o
        grad_h = (0.5 * grad).transpose(0, 1).contiguous()
        grad_c, grad_s, outward = grad_cell, grad_log_norm, weight.mT.contiguous()
        flat = slopes.flatten(3)
        grad_before, grads_h = grad_c, grad_h.unbind()
        steps = zip(
            *(x.unbind() for x in (openings, shares, keep, flat, to_i, to_f, to_z, to_o)), strict=True
        )
        for t, (opening, share, rest, slope, in_i, in_f, in_z, in_o) in reversed(list(enumerate(steps))):
            grad_c = torch.addcmul(grad_c, grads_h[t], opening)
            in_i.mul_(grad_c).addcmul_(grad_s, share)
            grad_s = grad_s - in_i
            in_f.mul_(grad_s)
            in_z.mul_(grad_c)
            in_o.mul_(grads_h[t])
            grad_c = grad_c * rest
            if t > 0 and not ctx.resets[t]:
                grads_h[t - 1].baddbmm_(slope, outward)
                continue
            grad_before = torch.bmm(slope, outward)
            if ctx.resets[t]:
                grad_before, grad_c, grad_s = (
                    x.masked_fill(begins[t], 0) for x in (grad_before, grad_c, grad_s)
                )
            if t > 0:
                grads_h[t - 1].add_(grad_before)
        before = torch.cat([2 * hidden[None], after[:-1]]).masked_fill_(begins, 0)
        rows = before.permute(1, 3, 0, 2).reshape(heads, width, time * batch)
        grad_gates = flat.transpose(0, 1)
        grad_weight = rows @ grad_gates.reshape(heads, time * batch, 4 * width)
        return None, grad_gates, 2 * grad_before, grad_c, grad_s, 0.5 * grad_weight

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
from scrubjay.memory.xlstm.parts import BlockLinear, HeadNorm

# log n before the first step, where n is 0: far below all gates, and small enough for sums of squares.
_EMPTY = -1e6


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
        self.input, self.forget, self.candidate, self.output = (BlockLinear(dim, heads) for _ in range(4))
        self.recurrent = nn.Parameter(torch.zeros(heads, width, 4 * width))
        self.bias = nn.Parameter(torch.zeros(4, dim))
        self.out_norm = HeadNorm(dim)
        self.feed_norm = nn.LayerNorm(dim, bias=False)
        self.feed_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.feed_out = nn.Linear(hidden, dim, bias=False)
        with torch.no_grad():
            self.convolution.weight[1:] *= 0.2
            # As in the published code: forget gates from sigmoid(5) down to sigmoid(-7) in each head.
            channel = torch.arange(width) / max(1, width - 1)
            self.bias[1].copy_((5 - 12 * channel**0.3).repeat(heads))

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the initial state of the block: zeros, and the logarithm of an empty normalizer."""
        tail = self.convolution.initial_state(batch_size)
        hidden = torch.zeros(batch_size, self.bias.shape[1], dtype=dtype, device=tail.device)
        log_norm = torch.full_like(hidden, _EMPTY)
        return {"hidden": hidden, "cell": hidden.clone(), "log_norm": log_norm, "tail": tail}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state."""
        start = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        y, after = self.segment(x[:, None], state, start)
        return y[:, 0], after

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state."""
        h = self.norm(x)
        features, tail = self.convolution(h, state["tail"], start)
        features = functional.silu(features + self.convolution_bias)
        gates = self.input(features), self.forget(features), self.candidate(h), self.output(h)
        inputs = torch.stack(gates, dim=2) + self.bias
        dtype = state["hidden"].dtype
        hidden, cell, log_norm = run_cells(
            inputs.to(dtype),
            start,
            state["hidden"],
            state["cell"],
            state["log_norm"],
            self.recurrent.to(dtype),
        )
        # A copy: a view would keep the whole segment in memory and be serialized with it.
        last = hidden[:, -1].clone(memory_format=torch.contiguous_format)
        after = {"hidden": last, "cell": cell, "log_norm": log_norm}
        x = x + self.out_norm(hidden.unflatten(-1, (self.heads, -1))).to(x.dtype)
        gate, value = self.feed_in(self.feed_norm(x)).chunk(2, dim=-1)
        return x + self.feed_out(functional.gelu(gate) * value), after | {"tail": tail}


@without_autocast
def run_cells(
    inputs: Float[Tensor, "batch time 4 dim"],
    start: Bool[Tensor, "batch time"],
    hidden: Float[Tensor, "batch dim"],
    cell: Float[Tensor, "batch dim"],
    log_norm: Float[Tensor, "batch dim"],
    recurrent: Float[Tensor, "heads width 4*width"],
) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
    """Return the hidden vectors after every step, and the last cell and log normalizer.

    Args:
        inputs: Parts of i, f, z and o that do not depend on the hidden vector.
        start: Mask of the steps that begin an episode.
        hidden: Hidden vector before the first step.
        cell: Cell before the first step.
        log_norm: Log normalizer before the first step.
        recurrent: Weights from the hidden vector of a head to its i, f, z and o.
    """
    tensors = (inputs, hidden, cell, log_norm, recurrent)
    if inputs.is_cuda or 0 in inputs.shape or needs_plain_autograd(*tensors):
        return run_reference(start, *tensors)
    return _Cells.apply(start, *tensors)  # pyright: ignore[reportReturnType]


def run_reference(
    start: Tensor, inputs: Tensor, hidden: Tensor, cell: Tensor, log_norm: Tensor, recurrent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of `run_cells` by the equations above, step by step."""
    heads, width, _ = recurrent.shape
    results = []
    for t in range(inputs.shape[1]):
        begins = start[:, t, None]
        hidden, cell = hidden.masked_fill(begins, 0), cell.masked_fill(begins, 0)
        log_norm = log_norm.masked_fill(begins, _EMPTY)
        product = hidden.unflatten(-1, (heads, 1, width)) @ recurrent
        product = product.view(len(hidden), heads, 4, width).transpose(1, 2).flatten(2)
        i, f, z, o = (inputs[:, t] + product).unbind(1)
        log_rest = functional.logsigmoid(f) + log_norm
        log_norm = torch.logaddexp(i, log_rest)
        cell = torch.lerp(cell, torch.tanh(z), torch.sigmoid(i - log_rest))
        hidden = torch.sigmoid(o) * cell
        results.append(hidden)
    return torch.stack(results, dim=1) if results else inputs[:, :, 0], cell, log_norm


class _Cells(torch.autograd.Function):
    """Function from inputs to the results of `run_cells`, with a custom backward pass.

    A step takes nine operations forward and nine backward. All tensors of a step are
    `[heads, batch, ..., width]`, so that one batched product serves all heads. The gates of a step are i, -f,
    z and o / 2: log sigmoid(f) is -softplus(-f), and sigmoid(o) is (1 + tanh(o / 2)) / 2, so one tanh serves
    z and o. The loop computes twice the hidden vector.
    """

    @staticmethod
    def forward(ctx, start, inputs, hidden, cell, log_norm, recurrent):
        batch, time, _, dim = inputs.shape
        heads, width, _ = recurrent.shape
        resets = start.any(dim=0).tolist()
        gates = inputs.new_empty(time, heads, batch, 4, width)
        torch.mul(
            inputs.reshape(batch, time, 4, heads, width).permute(1, 3, 0, 2, 4), _scale(inputs), out=gates
        )
        weight = _scale_weight(recurrent)
        shares, cells, after = (inputs.new_empty(time, heads, batch, width) for _ in range(3))
        h, c, s = 2 * _split(hidden, heads), _split(cell, heads), _split(log_norm, heads)
        steps = zip(
            resets,
            start.T[..., None].unbind(),
            gates.flatten(3).unbind(),
            *(part.unbind() for part in gates.unbind(3)),
            gates[..., 2:, :].unbind(),
            shares.unbind(),
            cells.unbind(),
            after.unbind(),
            strict=True,
        )
        for reset, begins, gate, i, f, z, o, outer, share, new_c, new_h in steps:
            if reset:
                h, c, s = h.masked_fill(begins, 0), c.masked_fill(begins, 0), s.masked_fill(begins, _EMPTY)
            gate.baddbmm_(h, weight)
            log_rest = s - functional.softplus(f)
            torch.sigmoid(i - log_rest, out=share)
            s = torch.logaddexp(i, log_rest)
            outer.tanh_()
            c = torch.lerp(c, z, share, out=new_c)
            h = torch.addcmul(c, c, o, out=new_h)
        ctx.save_for_backward(start, inputs, hidden, cell, log_norm, recurrent, gates, shares, cells, after)
        ctx.resets = resets
        y = (0.5 * after).permute(2, 0, 1, 3).reshape(batch, time, dim)
        return y, _join(c), _join(s)

    @staticmethod
    @without_autocast
    def backward(ctx, grad, grad_cell, grad_log_norm):
        start, *tensors, gates, shares, cells, after = ctx.saved_tensors
        if needs_graph(grad, grad_cell, grad_log_norm):
            grads = differentiate_graph(
                lambda *tensors: run_reference(start, *tensors), tensors, grad, grad_cell, grad_log_norm
            )
            return None, *grads
        inputs, hidden, cell, _, recurrent = tensors
        batch, time, _, dim = inputs.shape
        heads, width, _ = recurrent.shape
        weight, begins = _scale_weight(recurrent), start.T[:, None, :, None]
        _, f, z, o = gates.unbind(3)
        cells_before = torch.cat([_split(cell, heads)[None], cells[:-1]]).masked_fill_(begins, 0)
        # Factors from the gradients of cell, log normalizer and hidden vector to those of the gates.
        slopes = torch.empty_like(gates)
        to_i, to_f, to_z, to_o = slopes.unbind(3)
        keep = 1 - shares
        torch.mul(z - cells_before, shares * keep, out=to_i)
        torch.neg(torch.sigmoid(f), out=to_f)
        torch.mul(1 - z * z, shares, out=to_z)
        torch.mul(1 - o * o, cells, out=to_o)
        openings = 1 + o
        grad_h = grad.new_empty(time, heads, batch, width)
        torch.mul(grad.reshape(batch, time, heads, width).permute(1, 2, 0, 3), 0.5, out=grad_h)
        grad_c, grad_s = _split(grad_cell, heads), _split(grad_log_norm, heads)
        outward = weight.mT.contiguous()
        flat = slopes.flatten(3)
        grad_before = grad_c
        for t in reversed(range(time)):
            grad_c = torch.addcmul(grad_c, grad_h[t], openings[t])
            to_i[t].mul_(grad_c).addcmul_(grad_s, shares[t])
            grad_s = grad_s - to_i[t]
            to_f[t].mul_(grad_s)
            to_z[t].mul_(grad_c)
            to_o[t].mul_(grad_h[t])
            grad_c = grad_c * keep[t]
            if t > 0 and not ctx.resets[t]:
                grad_h[t - 1].baddbmm_(flat[t], outward)
                continue
            grad_before = torch.bmm(flat[t], outward)
            if ctx.resets[t]:
                grad_before, grad_c, grad_s = (
                    x.masked_fill(begins[t], 0) for x in (grad_before, grad_c, grad_s)
                )
            if t > 0:
                grad_h[t - 1] += grad_before
        before = torch.cat([2 * _split(hidden, heads)[None], after[:-1]]).masked_fill_(begins, 0)
        rows = before.permute(1, 3, 0, 2).reshape(heads, width, time * batch)
        grad_weight = rows @ flat.transpose(0, 1).reshape(heads, time * batch, 4 * width)
        slopes *= _scale(inputs)
        grad_inputs = slopes.permute(2, 0, 3, 1, 4).reshape(batch, time, 4, dim)
        grad_states = (_join(x) for x in (2 * grad_before, grad_c, grad_s))
        return None, grad_inputs, *grad_states, _scale_weight(grad_weight)


def _scale(like: Tensor) -> Float[Tensor, "4 1"]:
    """Return the factors of the gates in `_Cells`."""
    return like.new_tensor([1, -1, 1, 0.5])[:, None]


def _scale_weight(weight: Float[Tensor, "heads width 4*width"]) -> Float[Tensor, "heads width 4*width"]:
    """Return weights from twice the hidden vector to the scaled gates, or the gradient of the weights."""
    return (weight.unflatten(-1, (4, -1)) * (0.5 * _scale(weight))).flatten(2)


def _split(x: Float[Tensor, "batch dim"], heads: int) -> Float[Tensor, "heads batch width"]:
    return x.unflatten(-1, (heads, -1)).transpose(0, 1).contiguous()


def _join(x: Float[Tensor, "heads batch width"]) -> Float[Tensor, "batch dim"]:
    return x.transpose(0, 1).flatten(1).clone(memory_format=torch.contiguous_format)

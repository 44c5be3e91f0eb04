"""Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), in the variant that torch and cuDNN compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scrubjay.kernels.derivatives import differentiate_graph, needs_graph
from scrubjay.kernels.dispatch import needs_plain_autograd, without_autocast
from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.parts.flush import FlushPlan, cell_weights, expand_weights, flatten_into_buffer


@dataclass(frozen=True)
class GRUConfig(MemoryConfig):
    """Sizes of `GRU`."""

    paper_values = "in the paper, the reset gate acts before the recurrent matrix, here after it"

    def build(self) -> GRU:
        """Return a newly initialized GRU."""
        return GRU(self)


class GRU(Memory):
    """One GRU layer, as wide as its inputs. The state is the hidden vector.

    The layer computes in the state's dtype. A bfloat16 layer therefore rounds its outputs but not its state.
    """

    def __init__(self, config: GRUConfig) -> None:
        super().__init__(config)
        self.cell = nn.GRUCell(self.dim, self.dim)

    def initial_state(self, batch_size: int) -> State:
        """Return a zero hidden vector, `[batch, dim]`."""
        return {"hidden": torch.zeros(batch_size, self.dim, dtype=self.state_dtype, device=self.device)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one step of every row."""
        hidden = torch.gru_cell(
            x.to(self.state_dtype), state["hidden"], *cell_weights(self.cell, self.state_dtype)
        )
        return hidden.to(x.dtype), {"hidden": hidden}

    def segment(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Process a segment of every row; only products with the hidden vector are computed step by step."""
        inputs, hidden = x.to(self.state_dtype), state["hidden"]
        weights = cell_weights(self.cell, self.state_dtype)
        # cuDNN is faster, and a traced graph should contain one operation instead of hundreds.
        if x.is_cuda or needs_plain_autograd(inputs, hidden, *weights):
            y = _run_torch(inputs, start, hidden, *weights)
        else:
            y = _run_custom(inputs, start, hidden, *weights)
        # A copy: a view would keep the whole segment in memory and be serialized with it.
        return y.to(x.dtype), {"hidden": y[:, -1].clone(memory_format=torch.contiguous_format)}


def _run_torch(x: Tensor, start: Tensor, hidden: Tensor, *weights: Tensor) -> Tensor:
    """Return the hidden vectors after every step, computed by torch's GRU."""
    hidden = hidden.masked_fill(start[:, :1], 0)
    plan = FlushPlan.from_starts(start)
    if plan is None:
        return _gru(x.transpose(0, 1), hidden, flatten_into_buffer(weights)).transpose(0, 1)
    # Reset and update gates closed, candidate tanh(0): h' = (1 - 0) * 0 + 0 * h.
    expanded_weights = expand_weights(weights, flush=(-1, -1, 0), padding=(-1, 1, 0))
    return plan.collect(_gru(plan.expand(x), hidden, expanded_weights))


def _gru(x: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
    y, _ = torch.gru(
        x,
        hidden[None].contiguous(),
        weights,
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=True,
        bidirectional=False,
        batch_first=False,
    )
    return y


@without_autocast
def _run_custom(x: Tensor, start: Tensor, hidden: Tensor, *weights: Tensor) -> Tensor:
    return _Sequence.apply(x, start, hidden, *weights)


class _Sequence(torch.autograd.Function):
    """Function from inputs to the hidden vectors after every step, with a custom backward pass.

    A step takes five operations forward and three backward. With the reset gate r, the update gate z and the
    candidate n, the next hidden vector is h' = n + z (h - n). Here n = tanh(x_n + r h_n), where x_n is the
    projected input and h_n = W_n h + b_n. Operations that do not depend on h run for all steps at once.
    """

    @staticmethod
    def forward(ctx, x, start, hidden, weight, hidden_weight, bias, hidden_bias):
        batch, time, _ = x.shape
        width = hidden.shape[1]
        resets = start.any(dim=0).tolist()
        inward = torch.addmm(bias, x.transpose(0, 1).reshape(time * batch, x.shape[2]), weight.T)
        inward = inward.view(time, batch, 3 * width)
        # Inputs of the sigmoids of r and z, and h_n, without the terms that depend on h.
        gates = hidden_bias.repeat(time, batch, 1)
        gates[..., : 2 * width] += inward[..., : 2 * width]
        candidates = torch.empty_like(inward[..., :width], memory_format=torch.contiguous_format)
        after = torch.empty_like(candidates)
        outward = hidden_weight.T.contiguous()
        steps = zip(
            resets,
            start.T[..., None].unbind(),
            gates.unbind(),
            gates[..., : 2 * width].unbind(),
            *(part.unbind() for part in gates.split(width, dim=-1)),
            inward[..., 2 * width :].unbind(),
            candidates.unbind(),
            after.unbind(),
            strict=True,
        )
        h = hidden
        for reset, begins, gate, open_gates, r, z, h_n, x_n, n, new in steps:
            if reset:
                h = h.masked_fill(begins, 0)
            gate.addmm_(h, outward)
            open_gates.sigmoid_()
            torch.addcmul(x_n, r, h_n, out=n).tanh_()
            h = torch.lerp(n, h, z, out=new)
        ctx.save_for_backward(
            x, start, hidden, weight, hidden_weight, bias, hidden_bias, gates, candidates, after
        )
        ctx.resets = resets
        return after.transpose(0, 1)

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        *inputs, gates, candidates, after = ctx.saved_tensors
        if needs_graph(grad):
            first, start, *rest = inputs
            grad_x, *others = differentiate_graph(
                lambda x, *rest: _run_torch(x, start, *rest), (first, *rest), grad
            )
            return grad_x, None, *others
        x, start, hidden, weight, hidden_weight, *_ = inputs
        time, batch, width = after.shape
        begins = start.T[..., None]
        before = torch.cat([hidden[None], after[:-1]]).masked_fill_(begins, 0)
        r, z, h_n = gates.split(width, dim=-1)
        # Factors from the gradient of h' to those of the inputs of r, z and n.
        slopes = torch.empty_like(gates)
        to_r, to_z, to_h = slopes.split(width, dim=-1)
        to_n = torch.mul(1 - z, 1 - candidates.square())
        torch.mul(to_n, r, out=to_h)
        torch.mul(to_n * h_n, r * (1 - r), out=to_r)
        torch.mul(before - candidates, z * (1 - z), out=to_z)
        # Gradients of the hidden vectors before each step and after the last.
        grads = torch.empty_like(after[:1]).repeat(time + 1, 1, 1)
        totals, spread, keep, slope = grads.unbind(), grads[1:, :, None].unbind(), z.unbind(), slopes.unbind()
        by_gate = slopes.view(time, batch, 3, width).unbind()
        outside = [torch.zeros_like(hidden), *grad.unbind(dim=1)]
        totals[time].copy_(outside[time])
        for t in reversed(range(time)):
            by_gate[t].mul_(spread[t])
            if ctx.resets[t]:
                through_reset = torch.addmm(totals[t + 1] * keep[t], slope[t], hidden_weight)
                torch.add(outside[t], through_reset.masked_fill_(begins[t], 0), out=totals[t])
            else:
                torch.addcmul(outside[t], totals[t + 1], keep[t], out=totals[t])
                totals[t].addmm_(slope[t], hidden_weight)
        flat = slopes.view(time * batch, 3 * width)
        grad_hidden_weight, grad_hidden_bias = flat.T @ before.view(time * batch, width), flat.sum(dim=0)
        # The bias of h_n is multiplied by r; the input bias is not.
        torch.mul(grads[1:], to_n, out=to_h)
        grad_weight = flat.T @ x.transpose(0, 1).reshape(time * batch, x.shape[2])
        grad_x = (flat @ weight).view(time, batch, x.shape[2]).transpose(0, 1)
        return grad_x, None, grads[0], grad_weight, grad_hidden_weight, flat.sum(dim=0), grad_hidden_bias

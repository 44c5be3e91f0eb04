"""Cells of sLSTM: the steps of all heads, as a plain loop and with a custom backward pass.

With the gates f, i, z and o of a channel, the cell h = c / n and the log normalizer s = log n, a step is

    u_t = i_t - log sigmoid(f_t) - s_{t-1},    s_t = i_t - log sigmoid(u_t),
    h_t = h_{t-1} + sigmoid(u_t) (tanh(z_t) - h_{t-1}),    y_t = sigmoid(o_t) h_t.

`run_reference` computes these equations. The fast loop computes n_t = sigmoid(f_t) n_{t-1} + exp(i_t) itself,
and sigmoid(u_t) = exp(i_t) / n_t. The plain loop repeats a segment in which n leaves the range of floats.

Three gates need one sigmoid: tanh(z) is 2 sigmoid(2 z) - 1. The batch is the last dimension, so that all
values of a gate of a head are adjacent: softplus of narrow slices takes 5 to 15 times as long.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.derivatives import differentiate_graph, needs_graph, retain_freed_memory
from scrubjay.kernels.dispatch import needs_plain_autograd, without_autocast

# log n before the first step, where n is 0: far below all gates, and small enough for sums of squares.
EMPTY = -1e6
# Bound of n and 1 / n in the fast loop, far from the limits of float32.
_MAX_NORM = 1e26


@without_autocast
def run_cells(
    start: Bool[Tensor, "batch time"],
    features: Float[Tensor, "batch time dim"],
    inputs: Float[Tensor, "batch time dim"],
    hidden: Float[Tensor, "batch dim"],
    cell: Float[Tensor, "batch dim"],
    log_norm: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "heads 4 width width"],
    recurrent: Float[Tensor, "heads 4 width width"],
    bias: Float[Tensor, "heads 4 width"],
) -> tuple[
    Float[Tensor, "batch time dim"],
    Float[Tensor, "batch dim"],
    Float[Tensor, "batch dim"],
]:
    """Return the hidden vectors after every step, and the last cell and log normalizer.

    Args:
        start: Mask of the steps that begin an episode.
        features: Inputs of the gates i and f.
        inputs: Inputs of the gates z and o.
        hidden: Hidden vector y before the first step.
        cell: Cell before the first step.
        log_norm: Log normalizer before the first step.
        weight: Weights from features or inputs of a head to its gates f, i, z and o.
        recurrent: Weights from the hidden vector of a head to these gates.
        bias: Biases of these gates.
    """
    tensors = (features, inputs, hidden, cell, log_norm, weight, recurrent, bias)
    if not inputs.is_cuda and 0 not in inputs.shape and not needs_plain_autograd(*tensors):
        retain_freed_memory()
        results: Any = _Cells.apply(start, *tensors)
        *results, is_valid = results
        if bool(is_valid):
            return tuple(results)
    return run_reference(start, *tensors)


def run_reference(
    start: Tensor,
    features: Tensor,
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    log_norm: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of `run_cells` by the equations above, step by step.

    Args:
        start: Mask of the steps that begin an episode.
        features: Inputs of the gates i and f.
        inputs: Inputs of the gates z and o.
        hidden: Hidden vector y before the first step.
        cell: Cell before the first step.
        log_norm: Log normalizer before the first step.
        weight: Weights from features or inputs of a head to its gates f, i, z and o.
        recurrent: Weights from the hidden vector of a head to these gates.
        bias: Biases of these gates.
    """
    outputs = []
    for t in range(inputs.shape[1]):
        begins = start[:, t, None]
        hidden, cell = hidden.masked_fill(begins, 0), cell.masked_fill(begins, 0)
        log_norm = log_norm.masked_fill(begins, EMPTY)
        hidden, cell, log_norm = run_step(
            features[:, t], inputs[:, t], hidden, cell, log_norm, weight, recurrent, bias
        )
        outputs.append(hidden)
    # Without steps there is nothing to stack.
    return torch.stack(outputs, dim=1) if outputs else inputs, cell, log_norm


@without_autocast
def run_step(
    features: Float[Tensor, "batch dim"],
    inputs: Float[Tensor, "batch dim"],
    hidden: Float[Tensor, "batch dim"],
    cell: Float[Tensor, "batch dim"],
    log_norm: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "heads 4 width width"],
    recurrent: Float[Tensor, "heads 4 width width"],
    bias: Float[Tensor, "heads 4 width"],
) -> tuple[
    Float[Tensor, "batch dim"],
    Float[Tensor, "batch dim"],
    Float[Tensor, "batch dim"],
]:
    """Return hidden vector, cell and log normalizer after one step.

    Args:
        features: Inputs of the gates i and f.
        inputs: Inputs of the gates z and o.
        hidden: Hidden vector y before the step.
        cell: Cell before the step.
        log_norm: Log normalizer before the step.
        weight: Weights from features or inputs of a head to its gates f, i, z and o.
        recurrent: Weights from the hidden vector of a head to these gates.
        bias: Biases of these gates.
    """
    heads, _, width = bias.shape
    columns = [x.unflatten(1, (heads, width)).transpose(0, 1) for x in (features, inputs, hidden)]
    products = [columns[index] @ part.flatten(1, 2).mT for index, part in enumerate(weight.chunk(2, dim=1))]
    gates = torch.baddbmm(bias.flatten(1)[:, None], columns[2], recurrent.flatten(1, 2).mT)
    gates = (gates + torch.cat(products, dim=2)).unflatten(2, (4, width))
    f, i, z, o = gates.permute(2, 1, 0, 3).flatten(2).unbind()
    u = i - log_norm - functional.logsigmoid(f)
    # Not logaddexp: its second derivative is NaN for an empty normalizer.
    log_norm = i - functional.logsigmoid(u)
    cell = torch.lerp(cell, torch.tanh(z), torch.sigmoid(u))
    return torch.sigmoid(o) * cell, cell, log_norm


class _Cells(torch.autograd.Function):
    """Function from inputs to the results of `run_cells`, with a custom backward pass.

    A step takes seven operations forward and eight backward. The loop computes (h + 1) / 2 and -y. At the
    first step of an episode the forget gate is 0, so sigmoid(u_t) is 1, and nothing depends on n_{t-1} and
    h_{t-1}. The last output is True if n is in range and h is finite.
    """

    @staticmethod
    def forward(ctx, start, features, inputs, hidden, cell, log_norm, weight, recurrent, bias):
        (batch, time, _), heads, width = inputs.shape, *bias.shape[::2]
        size = width * batch
        resets = start.any(dim=0).tolist()
        rows = torch.stack([features.transpose(0, 1), inputs.transpose(0, 1)])
        scale = bias.new_tensor((1, 1, 2, 1))[:, None]
        inward, outward, biases = weight * scale[..., None], recurrent * -scale[..., None], bias * scale
        gates = inputs.new_empty(time, heads, 4, size)
        # f and i have the same inputs, and so have z and o.
        for index, part in enumerate(_split_heads(rows, heads)):
            own = slice(2 * index, 2 * index + 2)
            products = torch.bmm(inward[:, own].flatten(1, 2), part.mT)
            torch.add(
                products.view(heads, 2, width, time, batch).permute(3, 0, 1, 2, 4),
                biases[:, own, :, None],
                out=gates.view(time, heads, 4, width, batch)[:, :, own],
            )
        outward = outward.flatten(1, 2)
        if any(resets):
            gates.view(time, heads, 4, width, batch)[:, :, 0].masked_fill_(start.T[:, None, None], -torch.inf)
        shares, cells, after = (inputs.new_empty(time, heads, 1, size) for _ in range(3))
        h = _transpose(hidden, heads).neg()
        c, n = (_transpose(x, heads).view(heads, 1, size) for x in (0.5 * cell + 0.5, log_norm.exp()))
        norms = []
        steps = zip(
            gates.view(time, heads, 4 * width, batch).unbind(),
            *(part.unbind() for part in (*gates.split(1, dim=2), shares, cells, after)),
            after.view(time, heads, width, batch).unbind(),
            strict=True,
        )
        for t, (gate, f, i, z, o, share, new_c, new_y, new_h) in enumerate(steps):
            if resets[t]:
                h = h.masked_fill(start[:, t], 0)
            gate.baddbmm_(outward, h)
            torch.exp(i, out=share)
            gate.sigmoid_()
            n = torch.addcmul(share, f, n)
            share.div_(n)
            c = torch.lerp(c, z, share, out=new_c)
            torch.addcmul(o, o, c, value=-2, out=new_y)
            h = new_h
            norms.append(n)
        tensors = (start, features, inputs, hidden, cell, log_norm, weight, recurrent, bias)
        ctx.save_for_backward(*tensors, rows, gates, shares, cells, after)
        ctx.resets = resets
        smallest, largest = torch.stack(norms).aminmax()
        is_valid = (smallest > 1 / _MAX_NORM) & (largest < _MAX_NORM) & c.isfinite().all()
        ctx.mark_non_differentiable(is_valid)
        y = torch.neg(after.view(time, -1, batch).permute(2, 0, 1), out=torch.empty_like(inputs))
        return y, (2 * c - 1).view(-1, batch).T, n.log().view(-1, batch).T, is_valid

    @staticmethod
    @without_autocast
    def backward(ctx, grad, grad_cell, grad_log_norm, *_):
        start, *tensors, rows, gates, shares, cells, after = ctx.saved_tensors
        if needs_graph(grad, grad_cell, grad_log_norm):
            grads = differentiate_graph(
                lambda *tensors: run_reference(start, *tensors), tensors, grad, grad_cell, grad_log_norm
            )
            return None, *grads
        _, inputs, hidden, cell, _, weight, recurrent, bias = tensors
        (batch, time, _), heads, width = inputs.shape, *bias.shape[::2]
        size = width * batch
        before = torch.cat([_transpose(0.5 * cell + 0.5, heads).view(1, heads, 1, size), cells[:-1]])
        h_before = torch.cat(
            [_transpose(hidden, heads).neg()[None], after.view(time, heads, width, batch)[:-1]]
        )
        if any(ctx.resets):
            h_before.masked_fill_(start.T[:, None, None], 0)
        f, _, z, o = gates.split(1, dim=2)
        keep = 1 - shares
        # Factors from the gradients of cell, log normalizer and hidden vector to those of the gates.
        slopes = torch.empty_like(gates)
        to_f, to_i, to_z, to_o = slopes.split(1, dim=2)
        torch.mul(z - before, 2 * shares * keep, out=to_i)
        torch.mul(z - z * z, 4 * shares, out=to_z)
        torch.sub(1, f, out=to_f)
        torch.mul(o - o * o, 2 * cells - 1, out=to_o)
        # A copy, because the loop writes to it.
        grads = grad.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
        grads = grads.view(time, heads, width, batch)
        inward = recurrent.flatten(1, 2).mT
        grad_c, grad_s = (_transpose(x, heads).view(heads, 1, size) for x in (grad_cell, grad_log_norm))
        grad_before = torch.zeros_like(grads[0])
        parts = (o, shares, keep, slopes[:, :, 1:3], to_i, to_f, to_o, grads.view(time, heads, 1, size))
        steps = zip(
            *(part.unbind() for part in parts),
            slopes.view(time, heads, 4 * width, batch).unbind(),
            (grad_before, *grads[:-1].unbind()),
            strict=True,
        )
        for t, step in reversed([*enumerate(steps)]):
            opening, share, rest, in_iz, in_i, in_f, in_o, grad_y, slope, new = step
            grad_c = torch.addcmul(grad_c, grad_y, opening)
            in_iz.mul_(grad_c)
            in_i.addcmul_(grad_s, share)
            grad_s = grad_s - in_i
            in_f.mul_(grad_s)
            in_o.mul_(grad_y)
            grad_c = grad_c * rest
            if ctx.resets[t]:
                new.add_(torch.bmm(inward, slope).masked_fill_(start[:, t], 0))
            else:
                new.baddbmm_(inward, slope)
        by_gate = slopes.view(time, heads, 4 * width, batch).permute(1, 2, 0, 3).flatten(2)
        grad_weight, grad_inputs = torch.empty_like(weight), []
        for index, part in enumerate(_split_heads(rows, heads)):
            own = slice(2 * index, 2 * index + 2)
            grad_own = by_gate.unflatten(1, (4, width))[:, own].flatten(1, 2)
            grad_weight[:, own] = (grad_own @ part).view(heads, 2, width, width)
            grad_part = grad_own.mT @ weight[:, own].flatten(1, 2)
            grad_inputs.append(grad_part.view(heads, time, batch, width).permute(2, 1, 0, 3).flatten(2))
        grad_recurrent = by_gate @ h_before.permute(1, 0, 3, 2).reshape(heads, time * batch, width)
        grad_bias = by_gate.sum(2).view_as(bias)
        state = (x.view(-1, batch).T for x in (grad_before, grad_c, grad_s))
        return None, *grad_inputs, *state, grad_weight, -grad_recurrent.view_as(recurrent), grad_bias


def _transpose(x: Float[Tensor, "batch dim"], heads: int) -> Float[Tensor, "heads width batch"]:
    """Return the vectors of every head, with the batch as the last dimension."""
    return x.T.contiguous().unflatten(0, (heads, -1))


def _split_heads(
    rows: Float[Tensor, "2 time batch dim"], heads: int
) -> list[Float[Tensor, "heads steps width"]]:
    """Return the features and the inputs of every head."""
    return [part.flatten(0, 1).unflatten(1, (heads, -1)).transpose(0, 1) for part in rows.unbind()]

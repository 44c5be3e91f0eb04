"""Reference definition of neural memory: one token at a time, with the inner gradient by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.neural.mirror_map import forgets_all
from scrubjay.kernels.neural.network import (
    NORM_EPSILON,
    NetworkShape,
    NeuralState,
    Problem,
    is_clipped,
    unpack,
)


def learn_and_read(
    problem: Problem,
) -> tuple[Float[Tensor, "B T H D"], Float[Tensor, "B T H"], NeuralState]:
    """Return the outputs and the surprise of all tokens, and the final state."""
    query, key, value, gates, weights, state, shape, chunk_size, valid, fresh, cut, read_before_write, _ = (
        problem
    )
    mirror = shape.learning.mirror
    batch, time, heads, _ = query.shape
    outputs = torch.zeros_like(query)
    surprises = query.new_zeros(batch, time, heads)
    after = NeuralState(*(torch.zeros_like(part) for part in state))
    for b in range(batch):
        for h in range(heads):
            delta, momentum, anchor = (
                [part.squeeze(0) for part in unpack(whole[b, h][None], shape)] for whole in state
            )
            initial_weights = [weight[h] for weight in weights]
            for t in range(time):
                chunk, place = divmod(t, chunk_size)
                if place == 0 and fresh is not None and fresh[b, chunk]:
                    delta, momentum, anchor = (
                        [torch.zeros_like(w) for w in initial_weights] for _ in range(3)
                    )
                if place == 0 and cut is not None and cut[b, chunk]:
                    delta, momentum, anchor = (
                        [x.detach() for x in part] for part in (delta, momentum, anchor)
                    )
                if valid is not None and not valid[b, t]:
                    continue
                with torch.enable_grad():
                    at = [mirror.weights(w + a) for w, a in zip(initial_weights, anchor, strict=True)]
                    at = [w if w.requires_grad else w.requires_grad_() for w in at]
                    error = _network(key[b, t, h], at, shape) - value[b, t, h]
                    threshold = None if problem.threshold is None else problem.threshold[b, t, h, None]
                    pull = shape.learning.bias.gradient(error, threshold)
                    gradient = torch.autograd.grad(error, at, pull, create_graph=True)
                squared_norm = torch.stack([g.square().sum() for g in gradient]).sum()
                surprises[b, t, h] = squared_norm.detach().sqrt()
                step = gates.step_size[b, t, h]
                momentum_retention, retention = (
                    gates.log_momentum[b, t, h].exp(),
                    gates.log_retention[b, t, h].exp(),
                )
                bound = (1 - momentum_retention) / chunk_size * (error * pull).sum()
                if is_clipped(shape) and step * squared_norm > bound:
                    step = bound / squared_norm
                before = delta
                momentum = [
                    momentum_retention * s - step * g for s, g in zip(momentum, gradient, strict=True)
                ]
                # Retention decays the whole dual, or only its difference from the initial dual.
                base = (
                    initial_weights if forgets_all(mirror) else [torch.zeros_like(w) for w in initial_weights]
                )
                delta = [retention * (w + d) - w + s for w, d, s in zip(base, delta, momentum, strict=True)]
                read_at = before if read_before_write else delta
                # Inside a chunk the weights change by as much as their duals.
                now = [w + d - a for w, d, a in zip(at, read_at, anchor, strict=True)]
                read = _network(query[b, t, h], now, shape)
                outputs = outputs.index_put((torch.tensor(b), torch.tensor(t), torch.tensor(h)), read)
                if place == chunk_size - 1:
                    anchor = delta
            put = (torch.tensor(b), torch.tensor(h))
            after = NeuralState(
                *(
                    whole.index_put(put, torch.cat([x.flatten() for x in part]))
                    for whole, part in zip(after, (delta, momentum, anchor), strict=True)
                )
            )
    return outputs, surprises, after


def _network(
    x: Float[Tensor, " D"], weights: Sequence[Float[Tensor, "_In _Out"]], shape: NetworkShape
) -> Float[Tensor, " D"]:
    h = x
    for layer, weight in enumerate(weights):
        h = h @ weight
        if layer < len(weights) - 1:
            h = functional.silu(h) if shape.learning.activation == "silu" else functional.gelu(h)
    if shape.norm:
        h = functional.layer_norm(h, h.shape[-1:], eps=NORM_EPSILON)
    return x + h if shape.residual else h

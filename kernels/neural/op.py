"""Neural memory: a small network per batch row and head that learns the key -> value pair of each token.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), sections 3.1 and 3.2. A memory is a network M(x) =
act(act(x W_1) W_2) ... W_L with SiLU between its layers. Its initial weights are trained parameters. Its
state `delta` is the difference of its weights from the initial weights. Every token takes one step of
gradient descent, which accumulates in the momentum S:

    S_t = momentum_t S_{t-1} - step_t gradient(M at the anchor; k_t, v_t)        (eq. 10 and 14)
    delta_t = retention_t delta_{t-1} + S_t                                      (eq. 13)

The gradient is that of |M(k) - v|^2 / 2, and the anchor is delta at the start of the token's chunk (eq. 16).
Forgetting returns to the initial weights, not to zero, because at zero a network of two layers is at a saddle
point with zero gradient. In closed form, let index 0 stand for the start of the chunk. D_tk is the product of
the retentions of tokens k + 1 to t, and E_kj the product of the momentum factors of tokens j + 1 to k. Then

    delta_t = b_t delta_0 + f_t S_0 - sum_j G_tj step_j gradient_j,    G = D E,    f = D E_:0,    b_t = D_t0.

So a chunk takes a few matrix products. No weights per token are computed, and no exponent is positive.

In a memory of several layers, the step size is clipped to (1 - momentum_t) |r|^2 / (C |gradient|^2). Here r
is the gradient at the output. Then C equal tokens together remove at most their error, to first order.
`clip=False` disables the clip. A single matrix with keys of at most unit length needs no clip. Instead, its
caller limits the momentum, and limits the step size to a multiple of (1 - momentum_t) / C.

Other members of the family (Miras, Behrouz et al. 2025, arXiv 2504.13173) differ by their `Learning`.
With another loss, r is the gradient of that loss, and the clip uses the inner product of r with the error
instead of |r|^2. With a mirror map, the initial weights W are duals: the network's weights are
mirror(W + anchor) at the start of a chunk, and change inside the chunk by the same amount as delta.

Letters: B batch, T time, H heads, N chunks, C chunk length, D width of a head, P weights of a head's network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels.dispatch import (
    check_floats,
    check_shapes,
    needs_plain_autograd,
    resolve,
    unsupported_dtype,
    unsupported_transform,
    without_autocast,
)
from scrubjay.kernels.neural import reference
from scrubjay.kernels.neural.chunk import run_layers
from scrubjay.kernels.neural.loop import LayerStates, LoopOptions, NeuralTokens, run_duals, run_loop
from scrubjay.kernels.neural.matrix import run_matrix
from scrubjay.kernels.neural.mirror_map import forgets_all
from scrubjay.kernels.neural.network import (
    LEAST_LOG,
    TITANS,
    Gates,
    Learning,
    NetworkShape,
    NeuralState,
    Problem,
    backward_pass,
    clip_step,
    compute_error_share,
    compute_tangent_base,
    flush_denormals,
    forward_pass,
    mirror_weights,
    pack,
    residual_gradient,
    unpack,
)

Implementation = Literal["auto", "reference", "torch", "closed", "triton"]

_WIDEST_TRITON_TILE = 64


@without_autocast
def neural_memory(
    query: Float[Tensor, "B T H D"],
    key: Float[Tensor, "B T H D"],
    value: Float[Tensor, "B T H D"],
    gates: Gates,
    weights: Sequence[Float[Tensor, "H In Out"]],
    state: NeuralState,
    *,
    chunk_size: int,
    valid: Bool[Tensor, "B T"] | None = None,
    fresh: Bool[Tensor, "B N"] | None = None,
    cut: Bool[Tensor, "B N"] | None = None,
    read_before_write: bool = True,
    residual: bool = False,
    norm: bool = False,
    clip: bool = True,
    learning: Learning = TITANS,
    threshold: Float[Tensor, "B T H"] | None = None,
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "B T H D"], Float[Tensor, "B T H"], NeuralState]:
    """Return the outputs, the surprise of each token, and the final state.

    The surprise is the norm of the inner gradient, detached from the graph. T must be a multiple of C =
    `chunk_size`. Token t has position t % C in its chunk. A token that is not `valid` is skipped, but its
    query, key and value must be finite. A `fresh` chunk begins with zero delta and momentum. No gradient
    flows across the start of a `cut` chunk. Chunk 0 may continue an earlier chunk. Then the first tokens of
    chunk 0 are not valid, and its anchor is the anchor of `state`. `norm` standardizes the network's output,
    before `residual` adds the input.

    "torch" runs one chunk at a time, in time linear in T, with a custom backward pass. "closed" runs the same
    loop, and autograd can differentiate it any number of times. With `norm`, or with a `learning` other than
    Titans, "torch" is the same as "closed". "triton" supports one or two layers of Titans without `norm`, and
    is differentiable once. All compute in at least float32, but "triton" uses TF32 for half-precision tokens.

    Args:
        query: Queries.
        key: Keys to learn.
        value: Values to learn.
        gates: Gates of each token and head.
        weights: Initial weights of each layer.
        state: Initial state.
        chunk_size: Tokens per chunk, C.
        valid: Mask of tokens that are not skipped; all by default.
        fresh: Mask of chunks that begin with zero delta and momentum; none by default.
        cut: Mask of chunks whose start stops the gradient; none by default.
        read_before_write: Read each token before it is learned.
        residual: Add the network's input to its output.
        norm: Standardize the network's output.
        clip: Clip the steps of a memory of several layers.
        learning: Loss, activation and mirror map; Titans by default.
        threshold: Threshold of each token's error, at least 0; required for a `Huber` loss.
        implementation: An implementation of `scrubjay.kernels.dispatch`, or "closed".

    Raises:
        ValueError: If shapes do not match.
        TypeError: On integer tensors.
    """
    shape = NetworkShape.from_weights(weights, residual, norm, clip, learning)
    _check(query, key, value, gates, weights, state, shape, chunk_size, valid, fresh, cut, threshold)
    path = resolve(
        implementation,
        query,
        key,
        value,
        *weights,
        paths=("closed",),
        unsupported_reason=_unsupported_by_triton(query, key, value, state, shape, chunk_size),
    )
    dtype = torch.promote_types(state.delta.dtype, torch.float32)
    tokens = (query, key, value)
    state = NeuralState(*(part.to(dtype) for part in state))
    problem = Problem(
        *(tokens if path == "triton" else (x.to(dtype) for x in tokens)),
        gates=Gates(*(gate.to(dtype) for gate in gates)),
        weights=[weight.to(dtype) for weight in weights],
        state=state,
        shape=shape,
        chunk_size=chunk_size,
        valid=valid,
        fresh=fresh,
        cut=cut,
        read_before_write=read_before_write,
        threshold=None if threshold is None else threshold.to(dtype),
    )
    if path == "reference":
        y, surprise, after = reference.learn_and_read(problem)
    elif path == "triton" and query.shape[0] and query.shape[1]:
        from scrubjay.kernels.neural import gpu

        y, surprise, after = gpu.run_kernels(problem)
    else:
        y, surprise, after = _run_chunks(problem, custom_backward=path == "torch")
    return y.to(query.dtype), surprise, after


@without_autocast
def neural_memory_step(
    query: Float[Tensor, "B H D"],
    key: Float[Tensor, "B H D"],
    value: Float[Tensor, "B H D"],
    gates: Gates,
    weights: Sequence[Float[Tensor, "H In Out"]],
    state: NeuralState,
    completes: Bool[Tensor, "B"],
    *,
    chunk_size: int,
    read_before_write: bool = True,
    residual: bool = False,
    norm: bool = False,
    clip: bool = True,
    learning: Learning = TITANS,
    threshold: Float[Tensor, "B H"] | None = None,
) -> tuple[Float[Tensor, "B H D"], Float[Tensor, "B H"], NeuralState]:
    """Advance by one token. Return the results of `neural_memory` without the dim T.

    In batch rows where the token `completes` its chunk, the anchor moves to the new delta.

    Args:
        query: Query.
        key: Key to learn.
        value: Value to learn.
        gates: Gates of the token, each `[B, H]`.
        weights: Initial weights of each layer.
        state: Current state.
        completes: Mask of batch rows whose token is the last of its chunk.
        chunk_size: Tokens per chunk, C.
        read_before_write: Read the token before it is learned.
        residual: Add the network's input to its output.
        norm: Standardize the network's output.
        clip: Clip the steps of a memory of several layers.
        learning: Loss, activation and mirror map; Titans by default.
        threshold: Threshold of the token's error, at least 0; required for a `Huber` loss.
    """
    shape = NetworkShape.from_weights(weights, residual, norm, clip, learning)
    batch, heads, width = query.shape
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be at least 1")
    _check_network(weights, heads, width)
    tokens = {"key": key, "value": value}
    check_shapes(
        _expect_shapes(tokens, gates, state, query.shape, shape) | {"completes": (completes, (batch,))}
    )
    _check_threshold(threshold, learning)
    if threshold is not None:
        check_shapes({"threshold": (threshold, (batch, heads))})
        threshold = threshold[..., None, None]
    dtype = torch.promote_types(state.delta.dtype, torch.float32)
    q, k, v = (x.to(dtype)[:, :, None] for x in (query, key, value))
    gates = Gates(*(gate.to(dtype)[..., None, None] for gate in gates))
    weights = [weight.to(dtype) for weight in weights]
    anchor_layers = unpack(state.anchor, shape)
    anchor_weights = mirror_weights(weights, anchor_layers, shape)
    inputs, products, prediction = forward_pass(k, anchor_weights, shape)
    error = prediction - v
    pull = residual_gradient(error, threshold, shape)
    deltas = backward_pass(pull, products, anchor_weights, shape)
    share = compute_error_share(gates.log_momentum, chunk_size)
    step, squared_norm = clip_step(gates.step_size, share, error, pull, inputs, deltas, shape)
    gradient = pack([h.transpose(-1, -2) @ d for h, d in zip(inputs, deltas, strict=True)])
    momentum_retention = gates.log_momentum.clamp(min=LEAST_LOG).exp()[..., 0]
    retention = gates.log_retention.clamp(min=LEAST_LOG).exp()[..., 0]
    momentum = momentum_retention * state.momentum - step[..., 0] * gradient
    # Retention decays the whole dual, or only its difference from the initial dual.
    whole_dual = forgets_all(learning.mirror)
    initial_dual = pack(weights) if whole_dual else None
    delta = retention * (state.delta if initial_dual is None else initial_dual + state.delta) + momentum
    delta = delta if initial_dual is None else delta - initial_dual
    if torch.compiler.is_compiling() or completes.any():
        ends = completes[:, None, None]
        delta = delta if whole_dual else torch.where(ends, flush_denormals(delta), delta)
        momentum = torch.where(ends, flush_denormals(momentum), momentum)
        anchor = torch.where(ends, delta, state.anchor)
    else:
        anchor = state.anchor
    read_at = state.delta if read_before_write else delta
    base = compute_tangent_base(weights, anchor_weights, anchor_layers, shape)
    read_weights = [w + d for w, d in zip(base, unpack(read_at, shape), strict=True)]
    y = forward_pass(q, read_weights, shape)[2]
    return (
        y[:, :, 0].to(query.dtype),
        squared_norm.detach()[..., 0, 0].sqrt(),
        NeuralState(delta, momentum, anchor),
    )


@without_autocast
def neural_recall(
    query: Float[Tensor, "B T H D"],
    weights: Sequence[Float[Tensor, "H In Out"]],
    learned_weights: Float[Tensor, "B H P"],
    *,
    residual: bool = False,
    norm: bool = False,
    learning: Learning = TITANS,
) -> Float[Tensor, "B T H D"]:
    """Return the outputs of a memory for queries, without learning.

    Args:
        query: Queries.
        weights: Initial weights of each layer.
        learned_weights: The delta or the anchor of a `NeuralState`.
        residual: Add the network's input to its output.
        norm: Standardize the network's output.
        learning: Loss, activation and mirror map; Titans by default.

    Raises:
        ValueError: If shapes do not match.
        TypeError: On integer tensors.
    """
    shape = NetworkShape.from_weights(weights, residual, norm, learning=learning)
    batch, _, heads, width = query.shape
    check_floats(query=query)
    _check_network(weights, heads, width)
    check_shapes({"learned_weights": (learned_weights, (batch, heads, shape.size))})
    dtype = torch.promote_types(learned_weights.dtype, torch.float32)
    layers = mirror_weights([w.to(dtype) for w in weights], unpack(learned_weights, shape), shape)
    return forward_pass(query.to(dtype).transpose(1, 2), layers, shape)[2].transpose(1, 2).to(query.dtype)


def _run_chunks(problem: Problem, custom_backward: bool) -> tuple[Tensor, Tensor, NeuralState]:
    """Run all chunks, with the custom backward pass if `custom_backward` is set and the problem allows it."""
    query, key, value, gates, weights, state, shape, chunk_size, valid, fresh, cut, *_ = problem
    batch, time, heads, width = query.shape
    count = time // chunk_size
    rows = batch * heads

    def by_chunk(x: Tensor) -> Tensor:
        chunks = x.unflatten(1, (count, chunk_size)).movedim((1, 0, 3, 2), (0, 1, 2, 3))
        return chunks.reshape(count, rows, chunk_size, *x.shape[3:])

    def by_row(border: Tensor | None) -> Tensor | None:
        if border is None or not border.any():
            return None
        return border.T[:, :, None].expand(count, batch, heads).reshape(count, rows)

    step_size, log_momentum, log_retention = (by_chunk(gate) for gate in gates)
    incomplete = valid_tokens = None
    if valid is not None and not valid.all():
        valid_tokens = by_chunk(valid[..., None].expand(batch, time, heads))
        step_size, log_momentum, log_retention = (
            gate.masked_fill(~valid_tokens, 0) for gate in (step_size, log_momentum, log_retention)
        )
        incomplete = by_row(~valid.unflatten(1, (count, chunk_size))[..., -1])
    tokens = NeuralTokens(
        by_chunk(query), by_chunk(key), by_chunk(value), step_size[..., None], log_momentum, log_retention
    )
    layers = LayerStates(*(unpack(part.flatten(0, 1), shape) for part in state))
    options = LoopOptions(
        shape,
        by_row(fresh),
        by_row(cut),
        incomplete,
        valid_tokens,
        problem.read_before_write,
        None if problem.threshold is None else by_chunk(problem.threshold)[..., None],
    )
    plain = not shape.norm and shape.learning == TITANS
    custom_backward = custom_backward and plain and not needs_plain_autograd(*tokens, *weights, *state)
    if custom_backward and len(weights) == 1 and query.numel():
        y, squared_norm, after = run_matrix(options, tokens, weights[0], layers)
    else:
        weights = [w.expand(batch, *w.shape).flatten(0, 1) for w in weights]
        whole_dual = forgets_all(shape.learning.mirror)
        run = run_layers if custom_backward else run_duals if whole_dual else run_loop
        y, squared_norm, after = run(options, tokens, weights, layers)
    y = y.view(count, batch, heads, chunk_size, width).permute(1, 0, 3, 2, 4).reshape(query.shape)
    surprise = squared_norm.detach().sqrt().view(count, batch, heads, chunk_size)
    surprise = surprise.permute(1, 0, 3, 2).reshape(batch, time, heads)
    after = NeuralState(*(pack(part).view(batch, heads, shape.size) for part in after))
    return y, surprise, after


def _unsupported_by_triton(
    query, key, value, state: NeuralState, shape: NetworkShape, chunk_size: int
) -> str | None:
    if reason := unsupported_dtype(query, key, value, *state):
        return reason
    if shape.norm:
        return "no kernel for a standardized output (`norm`)"
    if shape.learning != TITANS:
        return f"no kernel for {shape.learning}, only for that of Titans"
    if len(shape.layers) > 1 and not shape.clip:
        return "no kernel for several layers with clip=False"
    if len(shape.layers) > 2:
        return f"no kernel for {len(shape.layers)} layers, only for one or two"
    if max(query.shape[-1], chunk_size) > _WIDEST_TRITON_TILE:
        return (
            f"no kernel for head width {query.shape[-1]} and chunk_size {chunk_size}; "
            f"both must be at most {_WIDEST_TRITON_TILE}"
        )
    return unsupported_transform()


def _check(query, key, value, gates, weights, state, shape, chunk_size, valid, fresh, cut, threshold) -> None:
    check_floats(query=query, key=key, value=value)
    batch, time, heads, width = query.shape
    if chunk_size < 1 or time % chunk_size:
        raise ValueError(f"chunk_size={chunk_size}: must be at least 1 and divide the token count {time}")
    _check_network(weights, heads, width)
    _check_threshold(threshold, shape.learning)
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "valid": (valid, (batch, time)),
        "fresh": (fresh, (batch, time // chunk_size)),
        "cut": (cut, (batch, time // chunk_size)),
        "threshold": (threshold, (batch, time, heads)),
    }
    tokens = {"key": key, "value": value}
    check_shapes(_expect_shapes(tokens, gates, state, query.shape, shape) | expected)


def _check_network(weights: Sequence[Tensor], heads: int, width: int) -> None:
    if weights[0].shape[1] != width or weights[-1].shape[2] != width:
        raise ValueError(
            f"weights map inputs of width {weights[0].shape[1]} to outputs of width {weights[-1].shape[2]}; "
            f"both must be {width}, the width of query"
        )
    for index, weight in enumerate(weights):
        if weight.shape[0] != heads:
            raise ValueError(f"weights[{index}] has {weight.shape[0]} heads; expected {heads}")


def _check_threshold(threshold: Tensor | None, learning: Learning) -> None:
    if learning.has_threshold and threshold is None:
        raise ValueError(f"threshold=None: {learning.bias} requires a threshold for each token and head")
    if threshold is not None and not learning.has_threshold:
        raise ValueError(f"threshold is not supported by {learning.bias}; pass threshold=None")


def _expect_shapes(
    tokens: dict[str, Tensor], gates: Gates, state: NeuralState, size: tuple[int, ...], shape: NetworkShape
) -> dict[str, tuple[Tensor | None, tuple[int, ...]]]:
    """Return tokens, gates and state by name, each with its expected shape. Queries have the shape `size`."""
    return {
        **{name: (token, tuple(size)) for name, token in tokens.items()},
        **{f"gates.{name}": (gate, tuple(size[:-1])) for name, gate in gates._asdict().items()},
        **{
            f"state.{name}": (part, (size[0], size[-2], shape.size)) for name, part in state._asdict().items()
        },
    }

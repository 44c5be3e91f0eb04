"""Neural memory: a small network per row and head that learns each token's key -> value as it is read.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), sections 3.1 and 3.2. A memory is a network M(x) =
act(act(x W_1) W_2) ... W_L with SiLU between its layers, born with learned weights and holding its difference
`delta` from them. Every token takes one step of gradient descent with momentum,

    S_t = momentum_t S_{t-1} - step_t gradient(M at the anchor; k_t, v_t)        (eq. 10 and 14)
    delta_t = retention_t delta_{t-1} + S_t                                      (eq. 13)

where the gradient is that of |M(k) - v|^2 / 2, and the anchor is delta at the start of the token's chunk (eq.
16). Forgetting returns to the learned weights, not to zero: at zero a network of two layers is at a saddle
for ever. In closed form, with D_tk the product of retentions after k up to t and E_kj that of momenta after j
up to k,

    delta_t = b_t delta_0 + f_t S_0 - sum_j G_tj step_j gradient_j,    G = D E,    f = D E_:0,    b_t = D_t0,

so a chunk is a handful of matrix products, no weights per token are formed, and no exponent is positive.

The step of a memory of several layers is clipped to (1 - momentum_t) |r|^2 / (C |gradient|^2), r the gradient
at the output: then C equal tokens, to first order, remove their error and no more; `clip=False` takes steps
as they are given. A matrix that learns keys
of at most unit length needs none: there the caller bounds steps, by the same share, and momentum.

Other members of the family (Miras, Behrouz et al. 2025, arXiv 2504.13173) differ by their `Learning`: what is
minimised is another loss, with r its gradient and |r|^2 in the clip its product with the error; weights are a
mirror of what adds up, whose chunks begin at mirror(W + anchor) and move from there as delta does.

Letters: B batch, T time, H heads, N chunks, C chunk length, D width of a head, P weights of a head's network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels.dispatch import check_floats, is_traced, resolve, unsupported_dtype, without_autocast
from scrubjay.kernels.neural import reference
from scrubjay.kernels.neural.loop import run_chunks
from scrubjay.kernels.neural.mirror import forgets_all
from scrubjay.kernels.neural.network import (
    LEAST_LOG,
    TITANS,
    Gates,
    Learning,
    NetworkShape,
    NeuralState,
    Problem,
    backward_pass,
    clipped_step,
    error_share,
    flushed,
    forward_pass,
    mirrored,
    pack,
    residual_gradient,
    tangent,
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
    """Return what every token reads, its gradient's length (surprise, without a graph), the state after.

    Token t lies at place t % C of its chunk; T is a multiple of C = `chunk_size`. A token that is not `valid`
    is skipped, whatever it holds that is finite. A chunk that is `fresh` begins with no delta and no
    momentum; across the beginning of one that is `cut` no gradient flows. Chunk 0 may continue one begun
    earlier, its first tokens not valid: its anchor is that of `state`. `read_before_write` says whether a
    token is read before or after it is learned. With `norm` the network's output is standardised, with
    `residual` its input is added, in this order.

    "torch" runs one chunk at a time with a gradient of its own, linear in T ("closed" differentiates the same
    loop by autograd, any number of times, and serves `norm` and all but Titans' `learning`). "triton" runs
    the kernels of `gpu` for one or two layers of Titans without `norm`, differentiable once. Computed in at
    least float32, tokens of half precision by TF32.

    Args:
        query: What is looked up.
        key: What is learned to be mapped...
        value: ...to this.
        gates: Of each token and head.
        weights: Of each layer, those the memory was born with.
        state: What was learned before.
        chunk_size: C, in tokens.
        valid: Which tokens count; all by default.
        fresh: Which chunks begin anew; none by default.
        cut: Which chunks begin without a graph; none by default.
        read_before_write: Whether a token does not know itself yet.
        residual: Whether the network's input is added.
        norm: Whether its output is standardised.
        clip: Whether steps of a memory of several layers are clipped.
        learning: What the memory minimises and its weights are; Titans' by default.
        threshold: Of each token's error, at least 0, where `learning` asks for one.
        implementation: One of `scrubjay.kernels.dispatch`, or "closed".

    Raises ValueError on sizes that disagree, and TypeError on whole numbers.
    """
    shape = NetworkShape.of(weights, residual, norm, clip, learning)
    _check(query, key, value, gates, weights, state, shape, chunk_size, valid, fresh, cut, threshold)
    path = resolve(
        implementation,
        query,
        key,
        value,
        *weights,
        paths=("closed",),
        unsupported=_unsupported_by_triton(query, key, value, state, shape, chunk_size),
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

        y, surprise, after = gpu.run_walk(problem)
    else:
        y, surprise, after = run_chunks(problem, by_hand=path == "torch")
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
    """Advance by one token; where it `completes` its chunk the anchor moves.

    Returns what `neural_memory` does, without its T.

    Args:
        query: What is looked up.
        key: What is learned to be mapped...
        value: ...to this.
        gates: Of the token, each `[B, H]`.
        weights: Of each layer, those the memory was born with.
        state: What was learned before.
        completes: Whether the token is the last of its chunk.
        chunk_size: C, in tokens.
        read_before_write: Whether the token does not know itself yet.
        residual: Whether the network's input is added.
        norm: Whether its output is standardised.
        clip: Whether steps of a memory of several layers are clipped.
        learning: What the memory minimises and its weights are; Titans' by default.
        threshold: Of the token's error, at least 0, where `learning` asks for one.
    """
    shape = NetworkShape.of(weights, residual, norm, clip, learning)
    batch, heads, width = query.shape
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    _check_network(weights, heads, width)
    _check_parts({"key": key, "value": value}, (batch, heads, width))
    _check_parts({f"gates.{name}": gate for name, gate in gates._asdict().items()}, (batch, heads))
    _check_parts(
        {f"state.{name}": part for name, part in state._asdict().items()}, (batch, heads, shape.size)
    )
    _check_parts({"completes": completes}, (batch,))
    _check_threshold(threshold, learning)
    if threshold is not None:
        _check_parts({"threshold": threshold}, (batch, heads))
        threshold = threshold[..., None, None]
    dtype = torch.promote_types(state.delta.dtype, torch.float32)
    q, k, v = (x.to(dtype)[:, :, None] for x in (query, key, value))
    gates = Gates(*(gate.to(dtype)[..., None, None] for gate in gates))
    weights = [weight.to(dtype) for weight in weights]
    standing = unpack(state.anchor, shape)
    anchored = mirrored(weights, standing, shape)
    inputs, products, prediction = forward_pass(k, anchored, shape)
    error = prediction - v
    pull = residual_gradient(error, threshold, shape)
    deltas = backward_pass(pull, products, anchored, shape)
    share = error_share(gates.log_momentum, chunk_size)
    step, squared = clipped_step(gates.step_size, share, error, pull, inputs, deltas, shape)
    gradient = pack([h.transpose(-1, -2) @ d for h, d in zip(inputs, deltas, strict=True)])
    kept = gates.log_momentum.clamp(min=LEAST_LOG).exp()[..., 0]
    retained = gates.log_retention.clamp(min=LEAST_LOG).exp()[..., 0]
    momentum = kept * state.momentum - step[..., 0] * gradient
    # What fades is the dual itself, or what was learned on top of the newborn's.
    whole = forgets_all(learning.mirror)
    born = pack(weights) if whole else None
    delta = retained * (state.delta if born is None else born + state.delta) + momentum
    delta = delta if born is None else delta - born
    if torch.compiler.is_compiling() or completes.any():
        ends = completes[:, None, None]
        delta = delta if whole else torch.where(ends, flushed(delta), delta)
        momentum = torch.where(ends, flushed(momentum), momentum)
        anchor = torch.where(ends, delta, state.anchor)
    else:
        anchor = state.anchor
    read_at = state.delta if read_before_write else delta
    base = tangent(weights, anchored, standing, shape)
    current = [w + d for w, d in zip(base, unpack(read_at, shape), strict=True)]
    y = forward_pass(q, current, shape)[2]
    return (
        y[:, :, 0].to(query.dtype),
        squared.detach()[..., 0, 0].sqrt(),
        NeuralState(delta, momentum, anchor),
    )


@without_autocast
def neural_recall(
    query: Float[Tensor, "B T H D"],
    weights: Sequence[Float[Tensor, "H In Out"]],
    learned: Float[Tensor, "B H P"],
    *,
    residual: bool = False,
    norm: bool = False,
    learning: Learning = TITANS,
) -> Float[Tensor, "B T H D"]:
    """Return what a memory answers that does not learn meanwhile.

    Args:
        query: What is looked up.
        weights: Of each layer, those the memory was born with.
        learned: A delta or an anchor.
        residual: Whether the network's input is added.
        norm: Whether its output is standardised.
        learning: What its weights are of what has added up; Titans' by default.

    Raises ValueError on sizes that disagree, and TypeError on whole numbers.
    """
    shape = NetworkShape.of(weights, residual, norm, learning=learning)
    batch, _, heads, width = query.shape
    check_floats(query=query)
    _check_network(weights, heads, width)
    _check_parts({"learned": learned}, (batch, heads, shape.size))
    dtype = torch.promote_types(learned.dtype, torch.float32)
    layers = mirrored([w.to(dtype) for w in weights], unpack(learned, shape), shape)
    return forward_pass(query.to(dtype).transpose(1, 2), layers, shape)[2].transpose(1, 2).to(query.dtype)


def _unsupported_by_triton(
    query, key, value, state: NeuralState, shape: NetworkShape, chunk_size: int
) -> str | None:
    if reason := unsupported_dtype(query, key, value, *state):
        return reason
    if shape.norm:
        return "no kernel for a standardised output (`norm`)"
    if shape.learning != TITANS:
        return f"no kernel for {shape.learning}, only for Titans'"
    if len(shape.layers) > 1 and not shape.clip:
        return "no kernel for several layers whose steps are not clipped"
    if len(shape.layers) > 2:
        return f"no kernel for {len(shape.layers)} layers, only for one or two"
    if max(query.shape[-1], chunk_size) > _WIDEST_TRITON_TILE:
        return (
            f"no kernel for heads or chunks beyond {_WIDEST_TRITON_TILE}, not {query.shape[-1]} and "
            f"{chunk_size}"
        )
    if is_traced() or torch._C._are_functorch_transforms_active():
        return "no kernel under torch.compile or torch.func"
    return None


def _check(query, key, value, gates, weights, state, shape, chunk_size, valid, fresh, cut, threshold) -> None:
    check_floats(query=query, key=key, value=value)
    batch, time, heads, width = query.shape
    if chunk_size < 1 or time % chunk_size:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1 and divide the {time} tokens")
    _check_network(weights, heads, width)
    _check_threshold(threshold, shape.learning)
    expected = {
        "key": (key, (batch, time, heads, width)),
        "value": (value, (batch, time, heads, width)),
        **{f"gates.{name}": (gate, (batch, time, heads)) for name, gate in gates._asdict().items()},
        **{f"state.{name}": (part, (batch, heads, shape.size)) for name, part in state._asdict().items()},
        "valid": (valid, (batch, time)),
        "fresh": (fresh, (batch, time // chunk_size)),
        "cut": (cut, (batch, time // chunk_size)),
        "threshold": (threshold, (batch, time, heads)),
    }
    for name, (tensor, size) in expected.items():
        if tensor is not None and tuple(tensor.shape) != size:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {size}")


def _check_network(weights: Sequence[Tensor], heads: int, width: int) -> None:
    if weights[0].shape[1] != width or weights[-1].shape[2] != width:
        raise ValueError(
            f"weights map {weights[0].shape[1]} to {weights[-1].shape[2]}; expected {width} to {width}"
        )
    for index, weight in enumerate(weights):
        if weight.shape[0] != heads:
            raise ValueError(f"weights[{index}] are of {weight.shape[0]} heads; expected {heads}")


def _check_threshold(threshold: Tensor | None, learning: Learning) -> None:
    if learning.has_threshold and threshold is None:
        raise ValueError(f"threshold=None: {learning.bias} asks for one of each token and head")
    if threshold is not None and not learning.has_threshold:
        raise ValueError(f"threshold is of no use to {learning.bias}; leave it out")


def _check_parts(parts: dict[str, Tensor], size: tuple[int, ...]) -> None:
    for name, part in parts.items():
        if tuple(part.shape) != size:
            raise ValueError(f"{name} has shape {tuple(part.shape)}; expected {size}")

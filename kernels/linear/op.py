"""Linear memory: a matrix per head that decays, stores one key -> value pair per token, and answers queries.

The recurrence covers linear attention and its successors (Katharopoulos et al. 2020, arXiv 2006.16236;
Lightning Attention, Qin et al. 2024, arXiv 2401.04658; DeltaNet, Yang et al. 2024, arXiv 2406.06484; Gated
DeltaNet, Yang et al. 2024, arXiv 2412.06464; Kimi Delta Attention, 2025, arXiv 2510.26692). Token t has the
query q_t, key k_t, value v_t, log decay g_t and step size b_t. The state S_t and the output y_t are

    S' = diag(exp g_t) S_{t-1}
    hebbian:  S_t = S' + b_t k_t v_t^T             delta:  S_t = S' + b_t k_t (v_t - S'^T e_t)^T
    y_t = S_t^T q_t, or S_{t-1}^T q_t with `read_before_write`.

At an episode start S_{t-1} = 0. The erase key e_t is k_t by default. Then, with keys of unit length, a step
size of 1 replaces the value that is stored for a key, and step sizes up to 2 keep the state bounded. With
other erase keys, the caller keeps the state bounded.

Letters: B batch, T time, H heads, K width of keys, V width of values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels.derivatives import supports_custom_backward
from scrubjay.kernels.dispatch import (
    Implementation,
    check_floats,
    check_shapes,
    check_start,
    is_traced,
    resolve,
    run_checked,
    unsupported_dtype,
    unsupported_transform,
    widest_dtype,
    without_autocast,
)
from scrubjay.kernels.linear import reference
from scrubjay.kernels.linear.chunks import choose_chunk_length
from scrubjay.kernels.linear.gradient import ChunkOptions, run_in_parts, run_with_autograd
from scrubjay.kernels.linear.reference import LinearInputs, Rule

_WIDEST_TRITON_HEAD = 128


@without_autocast
def linear_memory(
    query: Float[Tensor, "B T H K"],
    key: Float[Tensor, "B T H K"],
    value: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H *K"],
    step: Float[Tensor, "B T H"],
    state: Float[Tensor, "B H K V"],
    *,
    rule: Rule,
    erase_key: Float[Tensor, "B T H K"] | None = None,
    chunk_size: int = 64,
    start: Bool[Tensor, "B T"] | None = None,
    read_before_write: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """Return the outputs of all tokens and the state after the last token.

    Tokens before an episode start do not affect later tokens, even if they contain NaN or inf. The dtype of
    the computation and of the returned state is the widest dtype of the inputs, at least float32.

    "torch" runs chunk by chunk, in time linear in T. On a CPU it has a custom backward pass that supports
    higher derivatives. "triton" runs the same algorithm on a GPU and is differentiable once. Both check their
    results: the reference recomputes batch rows with non-finite values. Under torch.compile and torch.func no
    check is possible, so all inputs must be finite.

    Args:
        query: Queries.
        key: Keys to write.
        value: Values to write.
        log_decay: Log decay of the state at each token, at most 0; one per head or one per channel.
        step: Step size of each write.
        state: Initial state.
        rule: "hebbian" or "delta".
        erase_key: Keys of the delta rule whose stored values are subtracted; the keys to write by default.
        chunk_size: Largest number of tokens per chunk; affects speed and rounding only.
        start: Mask of the tokens that begin an episode; none by default.
        read_before_write: Read the state before the token decays it and writes to it.
        implementation: An implementation of `scrubjay.kernels.dispatch`.

    Raises:
        ValueError: If shapes do not match, on an unknown rule, on an erase key with the hebbian rule and on a
            `chunk_size` below 1.
        TypeError: On integer tensors.
    """
    arguments = LinearInputs(query, key, value, log_decay, step, state, erase_key)
    _check(arguments, start, rule)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be at least 1")
    path = resolve(implementation, *arguments.tensors(), unsupported_reason=_unsupported_by_triton(arguments))
    inputs = _to_widest_dtype(arguments)
    if path == "reference" or 0 in query.shape[:2]:
        y, after = reference.run(inputs, start, rule, read_before_write)
    elif query.shape[1] == 1 and (path == "torch" or implementation == "auto"):
        y, after = _one_token(inputs, start, rule, read_before_write)
    else:
        exact = all(x.dtype == torch.float32 for x in (query, key, value))
        options = _RunOptions(path, rule, chunk_size, read_before_write, exact)
        y, after = run_checked(
            lambda start: _run(options, inputs, start),
            lambda start, *some: _run(options, LinearInputs(*some), start),
            lambda start, *some: reference.run(LinearInputs(*some), start, rule, read_before_write),
            start,
            *inputs.tensors(),
        )
    return y.to(query.dtype), after


@without_autocast
def linear_memory_step(
    query: Float[Tensor, "B H K"],
    key: Float[Tensor, "B H K"],
    value: Float[Tensor, "B H V"],
    log_decay: Float[Tensor, "B H *K"],
    step: Float[Tensor, "B H"],
    state: Float[Tensor, "B H K V"],
    *,
    rule: Rule,
    erase_key: Float[Tensor, "B H K"] | None = None,
    read_before_write: bool = False,
    out: Tensor | None = None,
) -> tuple[Float[Tensor, "B H V"], Float[Tensor, "B H K V"]]:
    """Advance by one token; return the results of `linear_memory` without the dim T.

    Args:
        query: Query.
        key: Key to write.
        value: Value to write.
        log_decay: Log decay of the state, at most 0; one per head or one per channel.
        step: Step size of the write.
        state: Current state.
        rule: "hebbian" or "delta".
        erase_key: Key of the delta rule whose stored value is subtracted; the key to write by default.
        read_before_write: Read the state before the token decays it and writes to it.
        out: Tensor that receives the new state; may be `state`. Not differentiable.

    Raises:
        ValueError: If shapes do not match, on an unknown rule and on an erase key with the hebbian rule.
        TypeError: On integer tensors.
    """
    arguments = LinearInputs(query, key, value, log_decay, step, state, erase_key)
    _check(_map_tokens(lambda x: x[:, None], arguments, state), None, rule)
    y, after = _advance(_to_widest_dtype(arguments), rule, read_before_write, out)
    return y.to(query.dtype), after


def _to_widest_dtype(arguments: LinearInputs) -> LinearInputs:
    tensors = arguments.tensors()
    dtype = widest_dtype(*tensors)
    return LinearInputs(*(x.to(dtype) for x in tensors))


def _map_tokens(function: Callable[[Tensor], Tensor], inputs: LinearInputs, state: Tensor) -> LinearInputs:
    """Return `inputs` with `function` applied to the tensors of tokens, and with `state`."""
    erase_key = None if inputs.erase_key is None else function(inputs.erase_key)
    return LinearInputs(*(function(x) for x in inputs[:5]), state=state, erase_key=erase_key)  # pyright: ignore[reportArgumentType]


def _advance(
    inputs: LinearInputs, rule: Rule, read_before_write: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Advance by one token; the tensors have no dim T.

    One product with the state serves query and key.
    """
    query, key, value, log_decay, step, state, erase_key = inputs
    erase_key = key if erase_key is None else erase_key
    decay = log_decay.exp()
    decay = decay[..., None] if log_decay.ndim == 2 else decay
    decayed_query = query if read_before_write else query * decay
    if rule == "delta":
        y, prediction = (torch.stack([decayed_query, erase_key * decay], dim=2) @ state).unbind(2)
        update = (value - prediction) * step[..., None]
    else:
        y, update = (decayed_query[:, :, None] @ state)[:, :, 0], value * step[..., None]
    if not read_before_write:
        y = torch.addcmul(y, (query * key).sum(-1, keepdim=True), update)
    key, update = key[..., None], update[:, :, None]
    if out is not None:
        torch.mul(decay[..., None], state, out=out)
    elif is_traced() or torch._C._are_functorch_transforms_active():
        return y, torch.addcmul(decay[..., None] * state, key, update)
    else:
        # In place, because allocating so much memory costs more than the computation.
        out = decay[..., None] * state
    return y, out.addcmul_(key, update)


def _one_token(inputs: LinearInputs, start: Tensor | None, rule: Rule, read_before_write: bool):
    state = inputs.state
    if start is not None:
        state = torch.where(start[:, 0, None, None, None], 0, state)
    y, after = _advance(_map_tokens(lambda x: x[:, 0], inputs, state), rule, read_before_write)
    return y[:, None], after


class _RunOptions(NamedTuple):
    """Options of the chunked computation."""

    path: str
    rule: Rule
    chunk_size: int
    read_before_write: bool
    exact: bool
    """Compute the products in Triton by 3xTF32, which is nearly as precise as float32, instead of TF32."""


def _run(options: _RunOptions, inputs: LinearInputs, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a fast path. A read before a write is computed as a read after the previous token's write."""
    if not options.read_before_write:
        return _write_then_read(options, inputs, start)
    query = inputs.query
    first_output = (query[:, :1, :, None] @ inputs.state[:, None])[..., 0, :]
    shifted_query = torch.cat([query[:, 1:], torch.zeros_like(query[:, :1])], dim=1)
    y, after = _write_then_read(options, inputs._replace(query=shifted_query), start)
    y = torch.cat([first_output, y[:, :-1]], dim=1)
    return y if start is None else torch.where(start[..., None, None], 0, y), after


def _write_then_read(
    options: _RunOptions, inputs: LinearInputs, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    _, time, _, width = inputs.query.shape
    chunk_options = ChunkOptions(start, options.rule, choose_chunk_length(time, options.chunk_size, width))
    if options.path == "triton":
        from scrubjay.kernels.linear import gpu

        return gpu.run(chunk_options, options.exact, *inputs.tensors())
    if supports_custom_backward(*inputs.tensors()):
        return run_in_parts(chunk_options, *inputs.tensors())
    return run_with_autograd(chunk_options, *inputs.tensors())


def _unsupported_by_triton(inputs: LinearInputs) -> str | None:
    if reason := unsupported_dtype(*inputs.tensors()):
        return reason
    width = max(inputs.query.shape[-1], inputs.value.shape[-1])
    if width > _WIDEST_TRITON_HEAD:
        return f"no kernel for heads of width {width}, only up to {_WIDEST_TRITON_HEAD}"
    return unsupported_transform()


def _check(inputs: LinearInputs, start: Tensor | None, rule: str) -> None:
    query, key, value, log_decay, step, state, erase_key = inputs
    if rule not in ("hebbian", "delta"):
        raise ValueError(f"rule={rule!r}; choose from hebbian, delta")
    if erase_key is not None and rule != "delta":
        raise ValueError("erase_key needs rule='delta'; the hebbian rule does not erase")
    check_floats(query=query, key=key, value=value)
    if query.ndim != 4 or value.ndim != 4:
        name, tensor = ("query", query) if query.ndim != 4 else ("value", value)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected [batch, time, heads, width]")
    batch, time, heads, width = query.shape
    channel = log_decay.ndim == 4
    check_shapes(
        {
            "key": (key, (batch, time, heads, width)),
            "erase_key": (key if erase_key is None else erase_key, (batch, time, heads, width)),
            "value": (value, (batch, time, heads, value.shape[-1])),
            "log_decay": (log_decay, (batch, time, heads, width) if channel else (batch, time, heads)),
            "step": (step, (batch, time, heads)),
            "state": (state, (batch, heads, width, value.shape[-1])),
        }
    )
    check_start(start, batch, time)

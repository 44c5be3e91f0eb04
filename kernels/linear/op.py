"""Linear memory: a matrix per head that fades, learns a key -> value pair a token, and answers queries.

One rule serves linear attention and what came of it (Katharopoulos et al. 2020, arXiv 2006.16236; Lightning
Attention, Qin et al. 2024, arXiv 2401.04658; DeltaNet, Yang et al. 2024, arXiv 2406.06484; Gated DeltaNet,
Yang et al. 2024, arXiv 2412.06464; Kimi Delta Attention, 2025, arXiv 2510.26692). With g_t the logarithm of
the decay and b_t the step,

    S' = diag(exp g_t) S_{t-1}
    hebbian:  S_t = S' + b_t k_t v_t^T             delta:  S_t = S' + b_t k_t (v_t - S'^T k_t)^T
    y_t = S_t^T q_t, or S_{t-1}^T q_t with `read_before_write`,

and S_{t-1} = 0 where an episode begins. Of the delta rule, keys of unit length and steps up to 1 replace what
was known of a key, up to 2 keep the memory from growing.

Letters: B batch, T time, H heads, K width of keys, V width of values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels.derivatives import has_own_gradient
from scrubjay.kernels.dispatch import (
    Implementation,
    check_floats,
    is_traced,
    resolve,
    unsupported_dtype,
    widest_dtype,
    without_autocast,
    without_own_gradient,
)
from scrubjay.kernels.linear import reference
from scrubjay.kernels.linear.chunks import length_of_chunks
from scrubjay.kernels.linear.gradient import Plan, in_parts, plainly
from scrubjay.kernels.linear.reference import Given, Rule

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
    chunk_size: int = 64,
    start: Bool[Tensor, "B T"] | None = None,
    read_before_write: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """Return what every token reads and the state after the last.

    Nothing before a `start` has an effect on what is behind it, NaN and inf included. Computed in at least
    float32, the widest dtype of what is given, which is that of the state after.

    "torch" goes from chunk to chunk, linear in T, with a gradient by hand on a CPU that can be differentiated
    again. "triton" does the same by kernels, differentiable once. Both look at what they read: rows that hold
    numbers which are not finite are done by the definition. Under torch.compile and torch.func nothing can be
    looked at, and what is given must be finite.

    Args:
        query: What is looked up.
        key: What is written...
        value: ...and its answer.
        log_decay: Logarithms of what is kept from the token before, at most 0: one a head or one a channel.
        step: How much of a token is written.
        state: What is known before.
        rule: "hebbian" or "delta".
        chunk_size: Most tokens of a chunk, which may have fewer; changes speed and rounding only.
        start: Tokens before which all is forgotten; none by default.
        read_before_write: Whether a token reads what was known before it, unfaded.
        implementation: One of `scrubjay.kernels.dispatch`.

    Raises ValueError on sizes that disagree, an unknown rule or a `chunk_size` below 1, and TypeError on
    whole numbers.
    """
    _check(Given(query, key, value, log_decay, step, state), start, rule)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    unsupported = _unsupported_by_triton(query, key, value, log_decay, step, state)
    path = resolve(implementation, query, key, value, log_decay, step, state, unsupported=unsupported)
    dtype, out_dtype = widest_dtype(query, key, value, log_decay, step, state), query.dtype
    given = Given(*(x.to(dtype) for x in (query, key, value, log_decay, step, state)))
    if path == "reference" or 0 in query.shape[:2]:
        y, after = reference.run(given, start, rule, read_before_write)
    elif query.shape[1] == 1 and (path == "torch" or implementation == "auto"):
        y, after = _one_token(given, start, rule, read_before_write)
    else:
        exact = all(x.dtype == torch.float32 for x in (query, key, value))
        way = _Way(path, rule, chunk_size, read_before_write, exact)
        y, after = _by_chunks(way, given, start)
    return y.to(out_dtype), after


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
    read_before_write: bool = False,
    out: Tensor | None = None,
) -> tuple[Float[Tensor, "B H V"], Float[Tensor, "B H K V"]]:
    """Advance by one token; returns what `linear_memory` does, without its T.

    Args:
        query: What is looked up.
        key: What is written...
        value: ...and its answer.
        log_decay: Of a head or of a channel, at most 0.
        step: How much of the token is written.
        state: What is known before.
        rule: "hebbian" or "delta".
        read_before_write: Whether the token reads what was known before it.
        out: Where the state after goes, `state` itself for instance; only without gradients.

    Raises ValueError on sizes that disagree or an unknown rule, and TypeError on whole numbers.
    """
    longer = Given(*(x[:, None] for x in (query, key, value, log_decay, step)), state=state)
    _check(longer, None, rule)
    dtype, out_dtype = widest_dtype(query, key, value, log_decay, step, state), query.dtype
    given = Given(*(x.to(dtype) for x in (query, key, value, log_decay, step, state)))
    y, after = _advance(given, rule, read_before_write, out)
    return y.to(out_dtype), after


def _advance(
    given: Given, rule: Rule, read_before_write: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take one step of tokens without T; all that is asked of the state before is asked at once."""
    query, key, value, log_decay, step, state = given
    kept = log_decay.exp()
    kept = kept[..., None] if log_decay.ndim == 2 else kept
    asked = query if read_before_write else query * kept
    if rule == "delta":
        y, known = (torch.stack([asked, key * kept], dim=2) @ state).unbind(2)
        written = (value - known) * step[..., None]
    else:
        y, written = (asked[:, :, None] @ state)[:, :, 0], value * step[..., None]
    if not read_before_write:
        y = torch.addcmul(y, (query * key).sum(-1, keepdim=True), written)
    key, written = key[..., None], written[:, :, None]
    if out is not None:
        torch.mul(kept[..., None], state, out=out)
    elif is_traced() or torch._C._are_functorch_transforms_active():
        return y, torch.addcmul(kept[..., None] * state, key, written)
    else:
        # In place, since so much memory anew costs more than the numbers in it.
        out = kept[..., None] * state
    return y, out.addcmul_(key, written)


def _one_token(given: Given, start: Tensor | None, rule: Rule, read_before_write: bool):
    *tokens, state = given
    if start is not None:
        state = torch.where(start[:, 0, None, None, None], 0, state)
    y, after = _advance(Given(*(x[:, 0] for x in tokens), state=state), rule, read_before_write)
    return y[:, None], after


class _Way(NamedTuple):
    """How a segment is gone through."""

    path: str
    rule: Rule
    chunk_size: int
    read_before_write: bool
    exact: bool
    """Whether products by Triton keep the digits of float32."""


def _by_chunks(way: _Way, given: Given, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a fast path on all rows but those in which something is not finite."""
    looks = not (is_traced() or without_own_gradient(*given))
    if looks and given.query.is_cpu and start is not None and not start.any():
        start = None
    y, after = _run(way, given, start)
    # A product with zero forgets no NaN, so one that is behind a start may have come from before it.
    if not looks or bool(torch.isfinite(y.detach().sum() + after.detach().sum())):
        return y, after
    sick = ~(torch.isfinite(y.detach()).flatten(1).all(1) & torch.isfinite(after.detach()).flatten(1).all(1))
    if not sick.any():  # only their sum is beyond all numbers
        return y, after
    if sick.all():
        return reference.run(given, start, way.rule, way.read_before_write)
    well, ill = (rows.nonzero()[:, 0] for rows in (~sick, sick))
    of_well = _run(way, Given(*(x[well] for x in given)), None if start is None else start[well])
    starts = None if start is None else start[ill]
    of_ill = reference.run(Given(*(x[ill] for x in given)), starts, way.rule, way.read_before_write)
    back = torch.cat([well, ill]).argsort()
    return torch.cat([of_well[0], of_ill[0]])[back], torch.cat([of_well[1], of_ill[1]])[back]


def _run(way: _Way, given: Given, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a fast path; what is read before a write is read behind the write before."""
    if not way.read_before_write:
        return _written_first(way, given, start)
    query = given.query
    early = (query[:, :1, :, None] @ given.state[:, None])[..., 0, :]
    later = torch.cat([query[:, 1:], torch.zeros_like(query[:, :1])], dim=1)
    y, after = _written_first(way, given._replace(query=later), start)
    y = torch.cat([early, y[:, :-1]], dim=1)
    return y if start is None else torch.where(start[..., None, None], 0, y), after


def _written_first(way: _Way, given: Given, start: Tensor | None) -> tuple[Tensor, Tensor]:
    _, time, _, width = given.query.shape
    plan = Plan(start, way.rule, length_of_chunks(time, way.chunk_size, width))
    if way.path == "triton":
        from scrubjay.kernels.linear import gpu

        return gpu.run(plan, way.exact, *given)
    if has_own_gradient(*given):
        return in_parts(plan, *given)
    return plainly(plan, *given)


def _unsupported_by_triton(query, key, value, log_decay, step, state) -> str | None:
    if reason := unsupported_dtype(query, key, value, log_decay, step, state):
        return reason
    width = max(query.shape[-1], value.shape[-1])
    if width > _WIDEST_TRITON_HEAD:
        return f"no kernel for heads of width {width}, above {_WIDEST_TRITON_HEAD}"
    if is_traced() or torch._C._are_functorch_transforms_active():
        return "no kernel under torch.compile or torch.func"
    return None


def _check(given: Given, start: Tensor | None, rule: str) -> None:
    query, key, value, log_decay, step, state = given
    if rule not in ("hebbian", "delta"):
        raise ValueError(f"rule={rule!r}; choose from hebbian, delta")
    check_floats(query=query, key=key, value=value)
    if query.ndim != 4 or value.ndim != 4:
        name, tensor = ("query", query) if query.ndim != 4 else ("value", value)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected heads of numbers for each token")
    batch, time, heads, width = query.shape
    channel = log_decay.ndim == 4
    expected = {
        "key": (key, (batch, time, heads, width)),
        "value": (value, (batch, time, heads, value.shape[-1])),
        "log_decay": (log_decay, (batch, time, heads, width) if channel else (batch, time, heads)),
        "step": (step, (batch, time, heads)),
        "state": (state, (batch, heads, width, value.shape[-1])),
        "start": (start, (batch, time)),
    }
    for name, (tensor, size) in expected.items():
        if tensor is not None and tuple(tensor.shape) != size:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {size}")
    if start is not None and start.dtype != torch.bool:
        raise ValueError(f"start has dtype {start.dtype}; expected torch.bool, so pass start.bool()")

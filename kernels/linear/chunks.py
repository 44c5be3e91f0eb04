"""Linear memory by chunks: what tokens need of each other at once, and few products from each to the next.

With kk_ij and qk_ij the faded products of tokens i with keys j before them, their steps b_j included, and
since_i, until_i how much is left at i of what the chunk began with, S_0, and of i at its end,

    delta:    (I + kk) E = V - (K * since) S_0        (strictly lower: one triangular inverse)
    hebbian:  E = V
    Y = qk E + (Q * since) S_0,    S_C = since_C * S_0 + (b K * until)^T E.

The rule is exact, so borders between chunks change rounding only, and a chunk may hold any number of starts.

Letters: B batch, T time, H heads, K and V widths of a head, N chunks, C chunk length, R = B H.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels.linear.fading import NEGLIGIBLE, Fading, fade, pairs, ties
from scrubjay.kernels.linear.reference import Given, Rule

# Nothing is left of what was multiplied by e^-80.
_LEAST_LOG = -80.0
_SHORTEST, _LONGEST = 16, 64
# Chunks between looks for denormal numbers, beside the last.
_FLUSH_EVERY = 8


class Tokens(NamedTuple):
    """Tokens in chunks."""

    query: Float[Tensor, "N R C K"]
    key: Float[Tensor, "N R C K"]
    value: Float[Tensor, "N R C V"]
    decay: Float[Tensor, "N R C F"]
    step: Float[Tensor, "N R C 1"]


class Trace(NamedTuple):
    """What a pass through chunks leaves for its gradient."""

    fading: Fading
    tied: Tensor | None
    """The `ties` of one decay a head."""
    stepped: Float[Tensor, "N R C K"]
    """Keys times steps."""
    read: Float[Tensor, "N R C C"]
    inverse: Tensor | None
    """Of the delta rule, (I + kk)^-1."""
    reached: Tensor | None
    """Of the delta rule, its product with the faded keys."""
    errors: Float[Tensor, "N R C V"]
    states: Float[Tensor, "N R K V"]
    """What chunks begin with."""


def length_of_chunks(time: int, chunk_size: int, width: int) -> int:
    """Return the power of two up to `chunk_size` that is fast and wastes few places behind the last token.

    What tokens of a chunk need of each other grows with its length, and costs as much as the products with a
    state of `width` channels at half of that.
    """
    length = 1 << (min(chunk_size, max(_SHORTEST, min(_LONGEST, width // 2))).bit_length() - 1)
    while length > _SHORTEST and -(-time // length) * length > 1.125 * time:
        length //= 2
    while length >= 2 * time:
        length //= 2
    return length


def in_chunks(x: Tensor, length: int) -> Tensor:
    """Return `[N, R, C, .]` of `[B, T, H, .]`, with zeros behind the last token."""
    batch, time, heads, width = x.shape
    count = -(-time // length)
    if count * length > time:
        x = torch.cat([x, x.new_zeros(batch, count * length - time, heads, width)], dim=1)
    x = x.unflatten(1, (count, length)).permute(1, 0, 3, 2, 4)
    return x.reshape(count, batch * heads, length, width)


def in_time(x: Tensor, batch: int, time: int) -> Tensor:
    """Undo `in_chunks`."""
    count, rows, length, width = x.shape
    x = x.view(count, batch, rows // batch, length, width).permute(1, 0, 3, 2, 4)
    return x.reshape(batch, count * length, rows // batch, width)[:, :time]


def decays(log_decay: Tensor, start: Bool[Tensor, "B T"] | None) -> Tensor:
    """Return the decays `[B, T, H, F]`, zero where an episode begins."""
    if log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    gone = log_decay < _LEAST_LOG
    if start is not None:
        gone = gone | start[:, :, None, None]
    # Twice, since the derivative of what is not selected must be finite, too.
    return torch.where(gone, 0, torch.where(gone, 0, log_decay).exp())


def tokens_of(given: Given, start: Bool[Tensor, "B T"] | None, length: int) -> Tokens:
    """Return the tokens in chunks of this length."""
    query, key, value, log_decay, step, _ = given
    parts = (query, key, value, decays(log_decay, start), step[..., None])
    count = -(-query.shape[1] // length) * length - query.shape[1]
    query, key, value, decay, step = (in_chunks(part, length) for part in parts)
    if count:
        # Behind the last token nothing fades.
        behind = torch.arange(length, device=query.device) >= length - count
        last = torch.where(behind[:, None], 1, decay[-1:])
        decay = torch.cat([decay[:-1], last])
    return Tokens(query, key, value, decay, step)


def run(tokens: Tokens, state: Float[Tensor, "R K V"], rule: Rule) -> tuple[Tensor, Tensor, Trace]:
    """Return what tokens read `[N, R, C, V]`, the state after, and what the gradient needs."""
    query, key, value, decay, step = tokens
    fading = fade(decay)
    tied = ties(fading) if decay.shape[-1] == 1 else None
    stepped = key * step
    inverse = reached = None
    errors = value
    if rule == "hebbian":
        (read,) = pairs(fading, tied, [query], stepped)
    else:
        read, alike = pairs(fading, tied, [query, key], stepped)
        eye = torch.eye(key.shape[2], dtype=key.dtype, device=key.device)
        inverse = torch.linalg.solve_triangular(
            alike, eye.expand(alike.shape), upper=False, unitriangular=True
        )
        errors, reached = inverse @ value, inverse @ (key * fading.since)
    states, errors, after = _walk(fading, (stepped * fading.until).mT, errors, reached, state)
    y = read @ errors + (query * fading.since) @ states
    return y, after, Trace(fading, tied, stepped, read, inverse, reached, errors, states)


def _walk(fading: Fading, written: Tensor, errors: Tensor, reached: Tensor | None, state: Tensor):
    """Go from chunk to chunk; returns what they begin with, their errors, and the state after the last."""
    states, found, count = [], [], len(written)
    parts = zip(fading.whole.unbind(), written.unbind(), errors.unbind(), strict=True)
    for index, (whole, keys, error) in enumerate(parts):
        states.append(state)
        if reached is not None:
            error = torch.baddbmm(error, reached[index], state, alpha=-1)
            found.append(error)
        state = torch.baddbmm(whole * state, keys, error)
        if index % _FLUSH_EVERY == _FLUSH_EVERY - 1 or index == count - 1:
            state = torch.hardshrink(state, NEGLIGIBLE)
    return torch.stack(states), torch.stack(found) if found else errors, state

"""Linear memory by chunks: batched products inside chunks, and a loop over the chunks for the state.

The formulas describe one chunk of one head. Q, K and V are its queries, keys and values, b its step sizes,
S_0 the state at its start and S_C the state at its end. `start` is the decay from the chunk's start to each
token, start_C that over the whole chunk, and `end` the decay from each token to the chunk's end. For tokens i
and j, qk_ij is the product of query i and key j, times b_j and the decay from token j to token i. kk_ij is
the same with erase key i instead of query i. Both matrices are causal. With the erase keys A, which are K by
default, the errors E, the outputs Y and S_C are

    delta:    (I + kk) E = V - (A * start) S_0        (kk strictly lower triangular)
    hebbian:  E = V
    Y = qk E + (Q * start) S_0,    S_C = start_C * S_0 + (b K * end)^T E.

This is exact, so the chunk length changes rounding only. A chunk may contain any number of episode starts.

Letters of shapes: B batch, T time, H heads, K and V widths of a head's keys and values, N chunks, C chunk
length, R = B H, F decays per token (1, or one for each channel).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels.linear.decay import (
    NEGLIGIBLE,
    DecayProducts,
    compute_pair_decays,
    compute_pair_products,
    multiply_decays,
)
from scrubjay.kernels.linear.reference import LinearInputs, Rule

# Decays below e^-80 count as zero.
_LEAST_LOG = -80.0
_SHORTEST, _LONGEST = 16, 64
# Chunks between two flushes of denormal numbers; the last chunk is flushed, too.
_FLUSH_EVERY = 8


class LinearTokens(NamedTuple):
    """Queries, keys, values, decays, step sizes and erase keys of the tokens, split into chunks."""

    query: Float[Tensor, "N R C K"]
    key: Float[Tensor, "N R C K"]
    value: Float[Tensor, "N R C V"]
    decay: Float[Tensor, "N R C F"]
    step: Float[Tensor, "N R C 1"]
    erase_key: Float[Tensor, "N R C K"] | None = None

    @property
    def key_to_erase(self) -> Float[Tensor, "N R C K"]:
        """Keys whose stored values are subtracted."""
        return self.key if self.erase_key is None else self.erase_key


class LinearTrace(NamedTuple):
    """Intermediate results of the forward pass that the backward pass needs."""

    decay_products: DecayProducts
    pair_decays: Tensor | None
    """Result of `compute_pair_decays` if a token has one decay per head, else None."""
    scaled_keys: Float[Tensor, "N R C K"]
    """Keys times step sizes."""
    read_scores: Float[Tensor, "N R C C"]
    inverse: Tensor | None
    """Inverse of the matrix I + kk in the formulas of `kernels.linear.chunks`; None for the hebbian rule."""
    inverse_keys: Tensor | None
    """Product of `inverse` with A * start in the formulas, the decayed erase keys; None for hebbian."""
    errors: Float[Tensor, "N R C V"]
    states: Float[Tensor, "N R K V"]
    """State before each chunk."""


def choose_chunk_length(time: int, chunk_size: int, width: int) -> int:
    """Return a chunk length that is fast and needs little padding: a power of two up to `chunk_size`.

    The cost of the products between tokens grows with the chunk length. At a length of `width` / 2 it equals
    the cost of the products with the state, which has `width` channels.
    """
    length = 1 << (min(chunk_size, max(_SHORTEST, min(_LONGEST, width // 2))).bit_length() - 1)
    while length > _SHORTEST and -(-time // length) * length > 1.125 * time:
        length //= 2
    while length >= 2 * time:
        length //= 2
    return length


def to_chunks(x: Tensor, length: int) -> Tensor:
    """Split `[B, T, H, .]` into chunks `[N, R, C, .]`, padded with zeros after the last token."""
    batch, time, heads, width = x.shape
    count = -(-time // length)
    if count * length > time:
        x = torch.cat([x, x.new_zeros(batch, count * length - time, heads, width)], dim=1)
    x = x.unflatten(1, (count, length)).permute(1, 0, 3, 2, 4)
    return x.reshape(count, batch * heads, length, width)


def from_chunks(x: Tensor, batch: int, time: int) -> Tensor:
    """Join chunks `[N, R, C, .]` to `[B, T, H, .]`; the inverse of `to_chunks`."""
    count, rows, length, width = x.shape
    x = x.view(count, batch, rows // batch, length, width).permute(1, 0, 3, 2, 4)
    return x.reshape(batch, count * length, rows // batch, width)[:, :time]


def compute_decays(log_decay: Tensor, start: Bool[Tensor, "B T"] | None) -> Tensor:
    """Return the decay of every token, `[B, T, H, F]`, zero at episode starts. F is 1 or the key width."""
    if log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    is_zero = log_decay < _LEAST_LOG
    if start is not None:
        is_zero = is_zero | start[:, :, None, None]
    # `where` twice, because the derivative of the branch that is not selected must be finite, too.
    return torch.where(is_zero, 0, torch.where(is_zero, 0, log_decay).exp())


def split_tokens(inputs: LinearInputs, start: Bool[Tensor, "B T"] | None, length: int) -> LinearTokens:
    """Split the tokens into chunks of `length` tokens."""
    query, key, value, log_decay, step, _, erase_key = inputs
    parts = (query, key, value, compute_decays(log_decay, start), step[..., None])
    padding = -(-query.shape[1] // length) * length - query.shape[1]
    query, key, value, decay, step = (to_chunks(part, length) for part in parts)
    if padding:
        # The decay of padding is 1.
        is_padding = torch.arange(length, device=query.device) >= length - padding
        last = torch.where(is_padding[:, None], 1, decay[-1:])
        decay = torch.cat([decay[:-1], last])
    if erase_key is not None:
        erase_key = to_chunks(erase_key, length)
    return LinearTokens(query, key, value, decay, step, erase_key)


def run(
    tokens: LinearTokens, state: Float[Tensor, "R K V"], rule: Rule
) -> tuple[Tensor, Tensor, LinearTrace]:
    """Return the outputs `[N, R, C, V]`, the final state, and the trace for the backward pass."""
    query, key, value, decay, step, _ = tokens
    decay_products = multiply_decays(decay)
    pair_decays = compute_pair_decays(decay_products) if decay.shape[-1] == 1 else None
    scaled_keys = key * step
    inverse = inverse_keys = None
    errors = value
    if rule == "hebbian":
        (read_scores,) = compute_pair_products(decay_products, pair_decays, [query], scaled_keys)
    else:
        read_scores, key_scores = compute_pair_products(
            decay_products, pair_decays, [query, tokens.key_to_erase], scaled_keys
        )
        eye = torch.eye(key.shape[2], dtype=key.dtype, device=key.device)
        inverse = torch.linalg.solve_triangular(
            key_scores, eye.expand(key_scores.shape), upper=False, unitriangular=True
        )
        errors, inverse_keys = inverse @ value, inverse @ (tokens.key_to_erase * decay_products.from_start)
    states, errors, after = _scan_chunks(
        decay_products, (scaled_keys * decay_products.to_end).mT, errors, inverse_keys, state
    )
    y = read_scores @ errors + (query * decay_products.from_start) @ states
    return (
        y,
        after,
        LinearTrace(
            decay_products, pair_decays, scaled_keys, read_scores, inverse, inverse_keys, errors, states
        ),
    )


def _scan_chunks(
    decay_products: DecayProducts,
    decayed_keys: Tensor,
    errors: Tensor,
    inverse_keys: Tensor | None,
    state: Tensor,
):
    """Loop over the chunks. Return the state before each chunk, the errors, and the final state."""
    states, chunk_errors, count = [], [], len(decayed_keys)
    parts = zip(decay_products.chunk_decay.unbind(), decayed_keys.unbind(), errors.unbind(), strict=True)
    for index, (chunk_decay, keys, error) in enumerate(parts):
        states.append(state)
        if inverse_keys is not None:
            error = torch.baddbmm(error, inverse_keys[index], state, alpha=-1)
            chunk_errors.append(error)
        state = torch.baddbmm(chunk_decay * state, keys, error)
        if index % _FLUSH_EVERY == _FLUSH_EVERY - 1 or index == count - 1:
            state = torch.hardshrink(state, NEGLIGIBLE)
    return torch.stack(states), torch.stack(chunk_errors) if chunk_errors else errors, state

"""Inputs, outputs and saved activations of the chunks of `TitansMAC`.

Letters of dimensions:

- B batch, T steps, N chunks, C positions in a chunk, D width of the layer, P persistent tokens.
- Attention has H heads of width E, D = H * E, and S = P + 2 * C slots of keys.
- The memory has M heads of width W, D = M * W, and R = B * M networks.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class SegmentInputs(NamedTuple):
    """Differentiable arguments of `context.run`, in order: inputs, then the state, then parameters."""

    x: Float[Tensor, "B T D"]
    delta: Float[Tensor, "B M W*W"]
    momentum: Float[Tensor, "B M W*W"]
    anchor: Float[Tensor, "B M W*W"]
    keys: Float[Tensor, "B 2*C D"]
    values: Float[Tensor, "B 2*C D"]
    norm: Tensor
    norm_bias: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    persistent_keys: Float[Tensor, "P H still"]
    persistent_values: Float[Tensor, "P H E"]
    recall_query: Tensor
    recall_norm: Float[Tensor, " W"]
    recall_out: Tensor
    write_norm: Tensor
    write_norm_bias: Tensor
    write: Float[Tensor, "3*D D"]
    gates: Float[Tensor, "3*M D"]
    gates_bias: Float[Tensor, " 3*M"]
    weight: Float[Tensor, "M W W"]


class Activations(NamedTuple):
    """Activations that the forward pass saves for the backward pass."""

    normed_x: Float[Tensor, "B*T D"]
    mean: Tensor
    deviation: Tensor
    recall_projection: Float[Tensor, "N*B*C D"]
    """Recall queries before the activation."""
    recall_queries: Float[Tensor, "N R C W"]
    recall_query_inverse: Float[Tensor, "N B M C 1"]
    query: Float[Tensor, "N B H C E"]
    keys: Float[Tensor, "N B H S E"]
    values: Float[Tensor, "N B H S E"]
    states: Float[Tensor, "N+1 R 2 W W"]
    """Delta and momentum, stacked, at the start of every chunk and after the last chunk."""
    anchor: Float[Tensor, "R W W"]
    """Weights at which the gradients of the first chunk are taken."""
    recalls: Float[Tensor, "N R C W"]
    """Recalls after RMS normalization."""
    recall_inverse: Float[Tensor, "N R C 1"]
    scores: Float[Tensor, "N B*H C S"]
    """Unnormalized attention weights, as powers of 2."""
    total: Float[Tensor, "N B*H C 1"]
    read: Float[Tensor, "N B*H C E"]
    flat: Float[Tensor, "N B*C D"]
    attention_out: Float[Tensor, "N B*C D"]
    write_input: Float[Tensor, "N B*C D"]
    write_mean: Float[Tensor, "N B*C 1"]
    write_deviation: Float[Tensor, "N B*C 1"]
    write_projection: Float[Tensor, "N B*C 3*D"]
    """Queries, keys and values of the memory, before the activation."""
    tokens: Float[Tensor, "3 N R C W"]
    inverse: Float[Tensor, "2 N R C 1"]
    gate_values: Float[Tensor, "N 3 R C"]
    """Sigmoids of the gate logits."""
    step: Float[Tensor, "N R C"]
    logs: Float[Tensor, "N 2 R C"]
    """Logarithms of the momentum and retention gates."""
    error: Float[Tensor, "N R C W"]
    writes: Float[Tensor, "N R C 2*W"]
    reads: Float[Tensor, "N R C 2*W"]
    similarities: Float[Tensor, "N*R C C"]
    pair_weights: Float[Tensor, "N*R C C"]
    factors: list[Tensor]
    """Fields of `kernels.neural.factors.Factors`."""


class ChunkViews(NamedTuple):
    """Views of the `Activations` of one chunk, some of them transposed."""

    chunk_x: Float[Tensor, "B*C D"]
    recall_queries: Float[Tensor, "R C W"]
    query: Float[Tensor, "B*H C E"]
    keys: Float[Tensor, "B*H E S"]
    values: Float[Tensor, "B*H S E"]
    key_slots: Float[Tensor, "B C H E"]
    """Slots for the attention keys of the chunk's recalls."""
    value_slots: Float[Tensor, "B C H E"]
    recalls: Float[Tensor, "R C W"]
    recalls_by_step: Float[Tensor, "B C M W"]
    recall_inverse: Float[Tensor, "R C 1"]
    scores: Float[Tensor, "B*H C S"]
    total: Float[Tensor, "B*H C 1"]
    read: Float[Tensor, "B*H C E"]
    read_by_step: Float[Tensor, "B C H E"]
    flat: Float[Tensor, "B*C D"]
    flat_by_head: Float[Tensor, "B C H E"]
    attention_out: Float[Tensor, "B*C D"]
    write_input: Float[Tensor, "B*C D"]
    write_mean: Float[Tensor, "B*C 1"]
    write_deviation: Float[Tensor, "B*C 1"]
    write_projection: Float[Tensor, "B*C 3*D"]
    write_projection_by_head: Float[Tensor, "3 B M C W"]
    gate_values: Float[Tensor, "3 R C"]
    gate_values_by_step: Float[Tensor, "B C 3 M"]
    step: Float[Tensor, "R C"]
    error: Float[Tensor, "R C W"]
    writes: Float[Tensor, "R C 2*W"]
    writes_transposed: Float[Tensor, "R 2*W C"]
    state: Float[Tensor, "R 2 W W"]
    after: Float[Tensor, "R 2 W W"]
    tokens_by_head: Float[Tensor, "3 B M C W"]
    key: Float[Tensor, "R C W"]
    value: Float[Tensor, "R C W"]
    units: Float[Tensor, "2 R C W"]
    """Queries and keys for the memory. Each vector has at most unit length."""
    inverse: Float[Tensor, "2 R C 1"]


class SegmentOutputs(NamedTuple):
    """Outputs of a segment. All except `squared_surprise` are differentiable."""

    attention_out: Float[Tensor, "B T D"]
    write_input: Float[Tensor, "B T D"]
    reads: Float[Tensor, "B T M W"]
    delta: Float[Tensor, "B M W*W"]
    momentum: Float[Tensor, "B M W*W"]
    anchor: Float[Tensor, "B M W*W"]
    keys: Float[Tensor, "B 2*C D"]
    values: Float[Tensor, "B 2*C D"]
    squared_surprise: Float[Tensor, "B T M"]
    """Squared length of the gradient that each step writes to each memory head."""

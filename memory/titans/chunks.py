"""What goes into the chunks of `TitansMAC`, what comes out, and what the way back needs.

Letters: B batch, T steps, N chunks, C places of a chunk, D = H * E, H heads of attention and E their width, P
persistent tokens, S = P + 2 * C slots; D = M * W, M heads of memory and W their width, R = B * M.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Given(NamedTuple):
    """What is differentiated by, in the order that `context.run` takes it in: inputs, state, parameters."""

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
    recalled_norm: Float[Tensor, " W"]
    recalled_out: Tensor
    write_norm: Tensor
    write_norm_bias: Tensor
    write: Float[Tensor, "3*D D"]
    gates: Float[Tensor, "3*M D"]
    gates_bias: Float[Tensor, " 3*M"]
    weight: Float[Tensor, "M W W"]


class Kept(NamedTuple):
    """What the way back needs of the way forward."""

    normed: Float[Tensor, "B*T D"]
    mean: Tensor
    deviation: Tensor
    asking: Float[Tensor, "N*B*C D"]
    """What memory is asked, before its activation."""
    asked: Float[Tensor, "N R C W"]
    asked_inverse: Float[Tensor, "N B M C 1"]
    query: Float[Tensor, "N B H C E"]
    keys: Float[Tensor, "N B H S E"]
    values: Float[Tensor, "N B H S E"]
    states: Float[Tensor, "N+1 R 2 W W"]
    """Delta and momentum, one above the other, with which chunks begin, and after the last."""
    anchor: Float[Tensor, "R W W"]
    """That of the first chunk."""
    recalled: Float[Tensor, "N R C W"]
    """Of length 1."""
    recalled_inverse: Float[Tensor, "N R C 1"]
    scores: Float[Tensor, "N B*H C S"]
    """Powers of 2."""
    total: Float[Tensor, "N B*H C 1"]
    read: Float[Tensor, "N B*H C E"]
    flat: Float[Tensor, "N B*C D"]
    attended: Float[Tensor, "N B*C D"]
    written: Float[Tensor, "N B*C D"]
    written_mean: Float[Tensor, "N B*C 1"]
    written_deviation: Float[Tensor, "N B*C 1"]
    writing: Float[Tensor, "N B*C 3*D"]
    """Queries, keys and values of memory, before their activation."""
    tokens: Float[Tensor, "3 N R C W"]
    inverse: Float[Tensor, "2 N R C 1"]
    opened: Float[Tensor, "N 3 R C"]
    """Sigmoids of the gates' logits."""
    step: Float[Tensor, "N R C"]
    logs: Float[Tensor, "N 2 R C"]
    """Of momentum and retention."""
    error: Float[Tensor, "N R C W"]
    writes: Float[Tensor, "N R C 2*W"]
    reads: Float[Tensor, "N R C 2*W"]
    similar: Float[Tensor, "N*R C C"]
    pulls: Float[Tensor, "N*R C C"]
    factors: list[Tensor]
    """Those of `Factors`."""


class Chunk(NamedTuple):
    """Views of what a chunk is given and writes: those of `Kept`, and by other orders."""

    here: Float[Tensor, "B*C D"]
    asked: Float[Tensor, "R C W"]
    query: Float[Tensor, "B*H C E"]
    keys: Float[Tensor, "B*H E S"]
    values: Float[Tensor, "B*H S E"]
    key_slots: Float[Tensor, "B C H E"]
    """Those of what is recalled."""
    value_slots: Float[Tensor, "B C H E"]
    recalled: Float[Tensor, "R C W"]
    recalled_by_step: Float[Tensor, "B C M W"]
    recalled_inverse: Float[Tensor, "R C 1"]
    scores: Float[Tensor, "B*H C S"]
    total: Float[Tensor, "B*H C 1"]
    read: Float[Tensor, "B*H C E"]
    read_by_step: Float[Tensor, "B C H E"]
    flat: Float[Tensor, "B*C D"]
    flat_by_head: Float[Tensor, "B C H E"]
    attended: Float[Tensor, "B*C D"]
    written: Float[Tensor, "B*C D"]
    written_mean: Float[Tensor, "B*C 1"]
    written_deviation: Float[Tensor, "B*C 1"]
    writing: Float[Tensor, "B*C 3*D"]
    writing_by_head: Float[Tensor, "3 B M C W"]
    opened: Float[Tensor, "3 R C"]
    opened_by_step: Float[Tensor, "B C 3 M"]
    step: Float[Tensor, "R C"]
    error: Float[Tensor, "R C W"]
    writes: Float[Tensor, "R C 2*W"]
    writes_across: Float[Tensor, "R 2*W C"]
    state: Float[Tensor, "R 2 W W"]
    after: Float[Tensor, "R 2 W W"]
    tokens_by_head: Float[Tensor, "3 B M C W"]
    key: Float[Tensor, "R C W"]
    value: Float[Tensor, "R C W"]
    units: Float[Tensor, "2 R C W"]
    """Queries and keys."""
    inverse: Float[Tensor, "2 R C 1"]


class Outputs(NamedTuple):
    """What a segment comes to; all but `squared` are differentiable."""

    attended: Float[Tensor, "B T D"]
    written: Float[Tensor, "B T D"]
    reads: Float[Tensor, "B T M W"]
    delta: Float[Tensor, "B M W*W"]
    momentum: Float[Tensor, "B M W*W"]
    anchor: Float[Tensor, "B M W*W"]
    keys: Float[Tensor, "B 2*C D"]
    values: Float[Tensor, "B 2*C D"]
    squared: Float[Tensor, "B T M"]
    """Squared lengths of every step's gradient."""

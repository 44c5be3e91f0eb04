"""Products of decays between the tokens of a chunk, computed without divisions.

The decay between two tokens is the product of the decays of all tokens after the earlier one, up to and
including the later one. Blocks of tokens are merged pairwise. Take a token of a left block and a token of the
right block beside it. Their decay is `to_end` of the left token (decay from the token to the end of its
block) times `from_start` of the right token (decay from the start of its block to the token). So all factors
are at most one, and no differences of large sums occur. At an episode start the decay is zero, so every
product across the start is exactly zero.

Letters: N chunks, R pairs of batch row and head, C chunk length, a power of two, F decays per token (1, or
one for each channel).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Smaller factors become zero, because denormal numbers are ten times slower.
NEGLIGIBLE = 1e-30
_FLUSHED_FROM = 16


class DecayProducts(NamedTuple):
    """Cumulative products of the decays in each chunk, between the places that the kernels need."""

    block_products: list[tuple[Tensor, Tensor]]
    """Two tensors of decays for each block length 1, 2, 4, ..., both `[N, R, pairs, length, F]`.

    A pair is two neighboring blocks of `length` tokens. The first tensor holds the decay from the start of a
    pair's right block to each token of this block. The second tensor holds the decay from each token of the
    pair's left block to the end of this block.
    """
    from_start: Float[Tensor, "N R C F"]
    """Decay from the start of the chunk to each token."""
    to_end: Float[Tensor, "N R C F"]
    """Decay from each token to the end of the chunk."""

    @property
    def chunk_decay(self) -> Tensor:
        """Decay over the whole chunk, `[N, R, F, 1]`."""
        return self.from_start[:, :, -1, :, None]


def multiply_decays(decay: Float[Tensor, "N R C F"]) -> DecayProducts:
    """Return the products of decays inside every chunk. All decays must be in [0, 1]."""
    from_start, to_end, block_products = decay[..., None, :], torch.ones_like(decay)[..., None, :], []
    while from_start.shape[2] > 1:
        left_from_start, right_from_start = from_start[:, :, ::2], from_start[:, :, 1::2]
        left_to_end, right_to_end = to_end[:, :, ::2], to_end[:, :, 1::2]
        block_products.append((right_from_start, left_to_end))
        from_start = torch.cat([left_from_start, right_from_start * left_from_start[..., -1:, :]], dim=3)
        to_end = torch.cat([left_to_end * right_from_start[..., -1:, :], right_to_end], dim=3)
        if from_start.shape[3] >= _FLUSHED_FROM:
            from_start, to_end = (torch.hardshrink(x, NEGLIGIBLE) for x in (from_start, to_end))
    return DecayProducts(block_products, from_start[:, :, 0], to_end[:, :, 0])


def compute_pair_decays(decay_products: DecayProducts) -> Float[Tensor, "N R C C"]:
    """Return the decay between every two tokens of a chunk; 0 for future tokens.

    Requires one decay per token (F = 1).
    """
    pair_decays = torch.diag_embed(torch.ones_like(decay_products.from_start[..., 0]))
    for from_start, to_end in decay_products.block_products:
        _lower_blocks(pair_decays, from_start.shape[3]).copy_(from_start * to_end.mT)
    return torch.hardshrink(pair_decays, NEGLIGIBLE)


def compute_pair_products(
    decay_products: DecayProducts,
    pair_decays: Tensor | None,
    lefts: Sequence[Tensor],
    right: Float[Tensor, "N R C K"],
) -> list[Tensor]:
    """Return for each x in `lefts` the decayed dot products with `right` inside chunks, `[N, R, C, C]`.

    Entry [i, j] is the dot product of x at token i and `right` at token j, times the decay from j to i. It is
    0 for j > i. `pair_decays` is the result of `compute_pair_decays` if all channels share one decay, else
    None.
    """
    if pair_decays is not None:
        return [(x @ right.mT) * pair_decays for x in lefts]
    products = [torch.diag_embed((x * right).sum(-1)) for x in lefts]
    for from_start, to_end in decay_products.block_products:
        decayed_right = (_split_halves(right, from_start)[0] * to_end).mT
        for matrix, x in zip(products, lefts, strict=True):
            _lower_blocks(matrix, from_start.shape[3]).copy_(
                (_split_halves(x, from_start)[1] * from_start) @ decayed_right
            )
    return products


def backward_pair_products(
    decay_products: DecayProducts,
    pair_decays: Tensor | None,
    grads: Sequence[Tensor],
    lefts: Sequence[Tensor],
    right: Float[Tensor, "N R C K"],
) -> tuple[list[Tensor], Float[Tensor, "N R C K"]]:
    """Return the gradients of `lefts` and `right`.

    `grads` are the gradients of the results of `compute_pair_products`. If `pair_decays` is passed, `grads`
    are overwritten.
    """
    if pair_decays is not None:
        grad_lefts = [grad.mul_(pair_decays) @ right for grad in grads]
        grad_right = [grad.mT @ x for grad, x in zip(grads, lefts, strict=True)]
        return grad_lefts, sum(grad_right[1:], grad_right[0])
    diagonals = [grad.diagonal(dim1=-2, dim2=-1)[..., None] for grad in grads]
    grad_lefts = [x * right for x in diagonals]
    grad_right = diagonals[0] * lefts[0]
    for diagonal, x in zip(diagonals[1:], lefts[1:], strict=True):
        grad_right.addcmul_(diagonal, x)
    for from_start, to_end in decay_products.block_products:
        decayed_right = _split_halves(right, from_start)[0] * to_end
        grad_decayed = torch.zeros_like(decayed_right)
        for grad, x, grad_left in zip(grads, lefts, grad_lefts, strict=True):
            block = _lower_blocks(grad, from_start.shape[3]).contiguous()
            _split_halves(grad_left, from_start)[1].addcmul_(block @ decayed_right, from_start)
            grad_decayed.add_(block.mT @ (_split_halves(x, from_start)[1] * from_start))
        _split_halves(grad_right, from_start)[0].addcmul_(grad_decayed, to_end)
    return grad_lefts, grad_right


def _split_halves(x: Float[Tensor, "N R C K"], like: Tensor) -> tuple[Tensor, Tensor]:
    """Split the tokens into pairs of neighboring blocks; return all left blocks and all right blocks.

    A block has `like.shape[3]` tokens.
    """
    blocks = x.unflatten(2, (-1, 2, like.shape[3]))
    return blocks[:, :, :, 0], blocks[:, :, :, 1]


def _lower_blocks(matrix: Float[Tensor, "N R C C"], length: int) -> Tensor:
    """Return the entries of `matrix` for pairs of neighboring blocks of tokens.

    Blocks have `length` tokens. The result is a view `[N, R, pairs, length, length]`. Its rows are the tokens
    of the right block of a pair, and its columns those of the left block.
    """
    blocks = matrix.unflatten(3, (-1, 2, length)).unflatten(2, (-1, 2, length))[:, :, :, 1, :, :, 0]
    return blocks.diagonal(dim1=2, dim2=4).movedim(-1, 2)

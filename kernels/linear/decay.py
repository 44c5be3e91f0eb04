"""Products of decays between the tokens of a chunk, without quotients.

The decay between two tokens is the product of the decays after the earlier one, up to and including the later
one. Blocks of tokens are merged pairwise. The decay between a token of a left block and one of the right
block beside it is the product of `to_end` of the left token (decay from the token to the end of its block)
and `from_start` of the right token (decay from the start of its block to the token). So all factors are at
most one, no differences of large sums occur, and every product across an episode start, where the decay is
zero, is exactly zero.

Letters: N chunks, R rows of heads, C chunk length, a power of two, F decays of a token: 1 or one per channel.
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
    """Products of decays of many chunks."""

    block_products: list[tuple[Tensor, Tensor]]
    """`from_start` of right and `to_end` of left blocks of 1, 2, 4, ... tokens `[N, R, pairs, length, F]`."""
    from_start: Float[Tensor, "N R C F"]
    """Decay from the start of the chunk to each token."""
    to_end: Float[Tensor, "N R C F"]
    """Decay from each token to the end of the chunk."""

    @property
    def chunk_decay(self) -> Tensor:
        """Decay over the whole chunk, `[N, R, F, 1]`."""
        return self.from_start[:, :, -1, :, None]


def multiply_decays(decay: Float[Tensor, "N R C F"]) -> DecayProducts:
    """Return the products of decays, which must be in [0, 1]."""
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
    """Return the decay between each two tokens for one decay per token; 0 for future tokens."""
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
    """Return the causal products `[N, R, C, C]` of every x of `lefts` with `right`, times their decays.

    `pair_decays` is the result of `compute_pair_decays` for one decay per token, else None.
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
    """Return the gradients of `lefts` and `right`; overwrites `grads` if `pair_decays` are passed.

    `grads` are the gradients of the results of `compute_pair_products`.
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
    """Return the left and right blocks of all pairs; their length is that of the blocks of `like`."""
    blocks = x.unflatten(2, (-1, 2, like.shape[3]))
    return blocks[:, :, :, 0], blocks[:, :, :, 1]


def _lower_blocks(matrix: Float[Tensor, "N R C C"], length: int) -> Tensor:
    """Return views `[N, R, pairs, length, length]` of the products of right blocks with left blocks."""
    blocks = matrix.unflatten(3, (-1, 2, length)).unflatten(2, (-1, 2, length))[:, :, :, 1, :, :, 0]
    return blocks.diagonal(dim1=2, dim2=4).movedim(-1, 2)

"""How what is written fades inside a chunk: products of decays, none of them a quotient.

Between two tokens stands the product of the decays after the earlier one, up to the later one. Blocks are
joined two by two: between a token of the right block and one of the left it is what is left, at the right
token, of what its block began with (`since`), times what is left at the end of the left block of what that
token wrote (`until`). So no factor is above one, none is a difference of large sums, and all that spans a
decay of zero, by which an episode begins, is zero exactly.

Letters: N chunks, R rows of heads, C chunk length, a power of two, F decays of a token: 1 or one a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Factors below this are none: denormal numbers are ten times slower.
NEGLIGIBLE = 1e-30
_FLUSHED_FROM = 16


class Fading(NamedTuple):
    """The decays of many chunks, multiplied."""

    joints: list[tuple[Tensor, Tensor]]
    """Of blocks of 1, 2, 4, ... tokens `[N, R, pairs, length, F]`: `since` of right ones, `until` of left."""
    since: Float[Tensor, "N R C F"]
    """What is left, at a token, of what the chunk began with."""
    until: Float[Tensor, "N R C F"]
    """What is left of a token at the end of the chunk."""

    @property
    def whole(self) -> Tensor:
        """What is left at the end of the chunk of what it began with, `[N, R, F, 1]`."""
        return self.since[:, :, -1, :, None]


def fade(decay: Float[Tensor, "N R C F"]) -> Fading:
    """Return the products of decays, which are from 0 to 1."""
    since, until, joints = decay[..., None, :], torch.ones_like(decay)[..., None, :], []
    while since.shape[2] > 1:
        left_since, right_since = since[:, :, ::2], since[:, :, 1::2]
        left_until, right_until = until[:, :, ::2], until[:, :, 1::2]
        joints.append((right_since, left_until))
        since = torch.cat([left_since, right_since * left_since[..., -1:, :]], dim=3)
        until = torch.cat([left_until * right_since[..., -1:, :], right_until], dim=3)
        if since.shape[3] >= _FLUSHED_FROM:
            since, until = (torch.hardshrink(x, NEGLIGIBLE) for x in (since, until))
    return Fading(joints, since[:, :, 0], until[:, :, 0])


def ties(fading: Fading) -> Float[Tensor, "N R C C"]:
    """Return what is left of each token at each, of one decay a token; 0 of tokens to come."""
    tied = torch.diag_embed(torch.ones_like(fading.since[..., 0]))
    for since, until in fading.joints:
        _below(tied, since.shape[3]).copy_(since * until.mT)
    return torch.hardshrink(tied, NEGLIGIBLE)


def pairs(
    fading: Fading, tied: Tensor | None, lefts: Sequence[Tensor], right: Float[Tensor, "N R C K"]
) -> list[Tensor]:
    """Return the products `[N, R, C, C]` of every x of `lefts` with what of `right` is not behind it, faded.

    `tied` are the `ties` of one decay a token.
    """
    if tied is not None:
        return [(x @ right.mT) * tied for x in lefts]
    found = [torch.diag_embed((x * right).sum(-1)) for x in lefts]
    for since, until in fading.joints:
        faded = (_halves(right, since)[0] * until).mT
        for matrix, x in zip(found, lefts, strict=True):
            _below(matrix, since.shape[3]).copy_((_halves(x, since)[1] * since) @ faded)
    return found


def pull_back(
    fading: Fading,
    tied: Tensor | None,
    grads: Sequence[Tensor],
    lefts: Sequence[Tensor],
    right: Float[Tensor, "N R C K"],
) -> tuple[list[Tensor], Float[Tensor, "N R C K"]]:
    """Return the gradients of `lefts` and `right` from those of `pairs`, overwritten with `tied`."""
    if tied is not None:
        of_lefts = [grad.mul_(tied) @ right for grad in grads]
        of_right = [grad.mT @ x for grad, x in zip(grads, lefts, strict=True)]
        return of_lefts, sum(of_right[1:], of_right[0])
    own = [grad.diagonal(dim1=-2, dim2=-1)[..., None] for grad in grads]
    of_lefts = [x * right for x in own]
    of_right = own[0] * lefts[0]
    for more, x in zip(own[1:], lefts[1:], strict=True):
        of_right.addcmul_(more, x)
    for since, until in fading.joints:
        faded = _halves(right, since)[0] * until
        owed = torch.zeros_like(faded)
        for grad, x, of_left in zip(grads, lefts, of_lefts, strict=True):
            block = _below(grad, since.shape[3]).contiguous()
            _halves(of_left, since)[1].addcmul_(block @ faded, since)
            owed.add_(block.mT @ (_halves(x, since)[1] * since))
        _halves(of_right, since)[0].addcmul_(owed, until)
    return of_lefts, of_right


def _halves(x: Float[Tensor, "N R C K"], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the left and the right blocks of all pairs, of the length of those of `like`."""
    blocks = x.unflatten(2, (-1, 2, like.shape[3]))
    return blocks[:, :, :, 0], blocks[:, :, :, 1]


def _below(matrix: Float[Tensor, "N R C C"], length: int) -> Tensor:
    """Return the blocks `[N, R, pairs, length, length]` that tie right blocks of `length` to left ones."""
    blocks = matrix.unflatten(3, (-1, 2, length)).unflatten(2, (-1, 2, length))[:, :, :, 1, :, :, 0]
    return blocks.diagonal(dim1=2, dim2=4).movedim(-1, 2)

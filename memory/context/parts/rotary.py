"""Rotary positions of a language model, put exactly where a policy wants them.

Rotations compose (RoFormer, Su et al. 2021, arXiv 2104.09864), so what a model has turned to one position is
turned to another by the difference. A model takes angles in float32: at a million tokens they are off by up
to
0.06, and scores by a per cent (StreamingLLM's streams are longer). Here the difference to the wanted angle is
taken in float64, from the very float32 angle that the model took, so that what a policy stores is exact.
"""

from __future__ import annotations

import sys
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Turn(NamedTuple):
    """Cosines and sines by which tokens are turned, in each of a head's pairs of coordinates."""

    cos: Float[Tensor, "batch 1 length pairs"]
    sin: Float[Tensor, "batch 1 length pairs"]

    def __call__(
        self, x: Float[Tensor, "batch heads length width"]
    ) -> Float[Tensor, "batch heads length width"]:
        """Return `x` with coordinate pairs (i, i + pairs) turned; coordinates past the pairs stay."""
        pairs = self.cos.shape[-1]
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        left, right = x[..., :pairs], x[..., pairs : 2 * pairs]
        turned = [torch.addcmul(left * cos, right, sin, value=-1), torch.addcmul(right * cos, left, sin)]
        still = [x[..., 2 * pairs :]] if x.shape[-1] > 2 * pairs else []
        return torch.cat(turned + still, dim=-1)


class Rotary:
    """The rotary positions of one model.

    Raises ValueError if the model turns other pairs than (i, i + pairs), by angles that change with the
    length of the text, or layers by different angles.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = {id(m): m for m in model.modules() if isinstance(getattr(m, "inv_freq", None), Tensor)}
        if len(modules) != 1:
            raise ValueError(
                f"{type(model).__name__} has {len(modules)} kinds of rotary positions; policies that move "
                "positions need exactly one, shared by all layers: use the policy 'full'"
            )
        (self._module,) = modules.values()
        kind = getattr(self._module, "rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise ValueError(
                f"{type(model).__name__} has rope_type={kind!r}, whose angles change with the length of the "
                "text; use the policy 'full'"
            )
        self._dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self._check_pairs(model)

    @property
    def _frequencies(self) -> Tensor:
        # Read anew each time, for a model may be moved.
        return cast("Tensor", self._module.inv_freq)

    def turn(self, given: Int[Tensor, "batch length"], wanted: Int[Tensor, "batch length"]) -> Turn:
        """Return what moves tokens that the model put at positions `given` to `wanted`."""
        # As the model does it, in the model's precision.
        taken = given[..., None].float() * self._frequencies.to(given.device, torch.float32)
        angle = self.angle(wanted) - taken.double()
        return self._turn(angle)

    def move(self, by: Int[Tensor, "batch length"]) -> Turn:
        """Return what moves tokens that lie at exact positions `by` positions on."""
        angle = self.angle(by)
        return self._turn(angle)

    def _turn(self, angle: Tensor) -> Turn:
        return Turn(angle.cos()[:, None].to(self._dtype), angle.sin()[:, None].to(self._dtype))

    def angle(self, position: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length pairs"]:
        """Return the exact angles of positions."""
        return position[..., None].double() * self._frequencies.to(position.device, torch.float64)

    def _check_pairs(self, model: nn.Module) -> None:
        module = sys.modules.get(type(model).__module__)
        apply = getattr(module, "apply_rotary_pos_emb", None)
        if apply is None:
            raise ValueError(f"{type(model).__name__} has no rotary positions; use the policy 'full'")
        pairs = self._frequencies.shape[-1]
        x = torch.linspace(-1, 1, 2 * pairs)[None, None, None]
        angle = self.angle(torch.tensor([[3]])).float().cpu()
        doubled = torch.cat([angle, angle], dim=-1)
        try:
            theirs, _ = apply(x, x, doubled.cos(), doubled.sin())
        except (TypeError, RuntimeError, IndexError):
            theirs = None
        ours = Turn(angle.cos()[:, None], angle.sin()[:, None])(x)
        if theirs is None or not torch.allclose(theirs.float(), ours, atol=1e-5):
            raise ValueError(
                f"{type(model).__name__} turns other pairs of coordinates than (i, i + {pairs}); use the "
                "policy 'full'"
            )

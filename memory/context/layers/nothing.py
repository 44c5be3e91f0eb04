"""A layer that keeps nothing, of experts or a feed-forward alone, as Nemotron-H has them."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import DummyLayer


class NothingLayer(DummyLayer):
    """What a cache has in the place of such a layer, so that layers are counted as the model counts them."""

    def saved(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take up nothing."""

    def nbytes(self, place: str | None = None) -> int:
        """Return 0."""
        return 0

"""Cache layer without state, for layers that have only experts or a feed-forward network (Nemotron-H)."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import DummyLayer


class StatelessLayer(DummyLayer):
    """Placeholder for a model layer without a cache, so that layer indices match those of the model."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty dict."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Do nothing."""

    def nbytes(self, place: str | None = None) -> int:
        """Return 0."""
        return 0

"""Yaad: a neural memory that outliers cannot throw.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3, equation 26: the loss is
Huber's, half the squared error up to a threshold and linear beyond, so that no token pulls harder than its
threshold says; the threshold is softplus(.) of the token. Weights fade as those of Titans do, towards the
learned ones.

Where it differs, beside what `memory/miras/family.py` says: an error is held against the threshold by its
length, which keeps its direction; `measure="coordinate"` cuts each coordinate off by itself, as the paper has
it. Thresholds are born about as long as an error is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scrubjay.kernels import Huber, Learning
from scrubjay.memory.miras.family import Miras, MirasConfig


@dataclass(frozen=True)
class YaadConfig(MirasConfig):
    """Sizes of `Yaad`. Raises ValueError on one that cannot work."""

    measure: Literal["norm", "coordinate"] = "norm"
    """What is held against a token's threshold: its error's length, or each coordinate."""

    @property
    def learning(self) -> Learning:
        """What a network minimises and its weights are."""
        return Learning("gelu", Huber(self.measure))

    @property
    def gates(self) -> tuple[str, ...]:
        """What each token decides of each head."""
        return "step", "forgetting", "threshold"

    def build(self) -> Yaad:
        """Return a freshly initialised memory of these sizes."""
        return Yaad(self)


class Yaad(Miras):
    """Layers of neural memory that learns by Huber's loss, and feed-forward. State: that of `Miras`."""

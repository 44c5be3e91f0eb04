"""Yaad: a neural memory with a Huber loss, robust to outliers.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3, equation 26: the loss is
Huber's: half the squared error up to a threshold and linear beyond, so the gradient of a token is at most its
threshold. The threshold is softplus(.) of the token. Weights decay towards the learned ones, as in Titans.

Differences, besides those in `memory/miras/family.py`: the threshold applies to the length of an error, which
preserves its direction. `measure="coordinate"` clips each coordinate separately, as in the paper. Initial
thresholds are about the length of an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scrubjay.kernels import Huber, Learning
from scrubjay.memory.miras.family import Miras, MirasConfig


@dataclass(frozen=True)
class YaadConfig(MirasConfig):
    """Configuration of `Yaad`. Raises ValueError on an invalid value."""

    measure: Literal["norm", "coordinate"] = "norm"
    """Quantity compared with the threshold: the length of the error (`norm`) or each coordinate."""

    @property
    def learning(self) -> Learning:
        """Loss and weight parametrization of the networks."""
        return Learning("gelu", Huber(self.measure))

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates per head, computed from each token."""
        return "step", "forgetting", "threshold"

    def build(self) -> Yaad:
        """Return a freshly initialised memory."""
        return Yaad(self)


class Yaad(Miras):
    """Stack of feed-forward layers and neural memories with a Huber loss. State: the entries of `Miras`."""

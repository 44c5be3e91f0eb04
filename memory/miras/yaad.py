"""Yaad: a neural memory with a Huber loss, robust to outliers.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3, equation 26. The loss is
the Huber loss: half the squared error up to a threshold, and linear beyond the threshold. The gradient of the
loss with respect to the output therefore never exceeds the threshold. The threshold is the softplus of a
linear function of the token. Weights decay towards the learned initial weights, as in Titans.

Besides the differences in `memory/miras/family.py`, there is one: the threshold applies to the length of an
error vector, so clipping preserves its direction. `measure="coordinate"` clips each coordinate separately, as
in the paper. Initial thresholds are about as large as the length of a typical error.
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
    """Quantity that is compared with the threshold: the length of the error vector (`norm`), or each of its
    coordinates (`coordinate`)."""

    @property
    def learning(self) -> Learning:
        """Learning rule: loss of the networks, and map from accumulated gradient steps to weights."""
        return Learning("gelu", Huber(self.measure))

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates. A gate has one value per head and token."""
        return "step", "forgetting", "threshold"

    def build(self) -> Yaad:
        """Return a newly initialized memory."""
        return Yaad(self)


class Yaad(Miras):
    """Stack of feed-forward layers and neural memories with a Huber loss. State: the entries of `Miras`."""

"""Miras: neural memories whose losses and retention rules differ from those of Titans.

Behrouz, Razaviyayn, Zhong & Mirrokni 2025 (arXiv 2504.13173), section 5.3. Each memory is
`kernels.neural_memory` without momentum, with its own loss and its own map from accumulated steps to weights
(mirror map). The layer is that of `memory/titans/neural.py`, whose docstring applies here as well.

The paper's network is M(x) = x + LN(W_1 GELU(W_2 x)), where LN is a layer norm and the hidden layer is 4
times as wide as x. Set `depth=2, residual=True, norm=True` to use this network. The default is a single
matrix, as in `titans`. On small recall tasks, the matrix needed half as many updates, and each update took a
third of the time.

Differences of all three memories from the paper by default: a gate has one value per head. In the paper, it
has one value per channel, computed by low-rank matrices. The norm LN has no weights. Steps are bounded as in
Titans, and clipped so that a step does not overshoot the error that it removes. `bound_steps=False` disables
the clip, and has a smaller default of `max_step`. Weights decay towards the learned initial weights, not
towards zero. In a network of two layers, weights of zero would have a gradient of zero, so they would stay
zero.

`make("yaad", paper=True)` and its like for the other memories have none of these differences:
`memory/titans/paper.py` computes their steps.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from scrubjay.kernels import Huber, Learning, Power, QNorm, Simplex
from scrubjay.memory.contract.base import PaperValues
from scrubjay.memory.titans.lmm import Titans, TitansConfig

_PAPER_VALUES: dict[str, object] = {
    "chunk_size": 1,
    "depth": 2,
    "residual": True,
    "norm": True,
    "read_before_write": False,
    "bound_steps": False,
    "follow_paper": True,
}
"""Values of the paper for all three memories."""


@dataclass(frozen=True)
class MirasConfig(TitansConfig):
    """Base configuration of the Miras memories. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = _PAPER_VALUES

    hidden_ratio: int = 4
    """Width of the hidden layers of a head's network, in units of the head's width."""
    max_gate_rank: int = 32
    """Largest rank of the map from the input to the gates, with `follow_paper`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("max_gate_rank")
        if self.follow_paper and self.depth > 2:
            raise ValueError(
                f"follow_paper with depth={self.depth}: must be at most 2, because a gate has one value per "
                "channel of a head's inputs or outputs"
            )
        _ = self.learning

    @property
    @abstractmethod
    def learning(self) -> Learning:
        """Learning rule: loss of the networks, and map from accumulated gradient steps to weights."""

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates. A gate has one value per head and token."""
        return "step", "forgetting"

    @property
    def gate_rank(self) -> int:
        """Rank of the map to gates with one value per channel; 0 for gates with one value per head."""
        return min(self.max_gate_rank, self.dim) if self.follow_paper else 0

    def build_initial_weights(self) -> list[Tensor]:
        """Return the untrained initial weights of the layers of a head's network.

        With `norm`, no weights are zero, because a zero output cannot be standardized.
        """
        if not self.norm:
            return super().build_initial_weights()
        return [torch.randn(self.heads, a, b) * a**-0.5 for a, b in self.layer_widths]


class Miras(Titans):
    """Stack of neural memory and feed-forward layers.

    State: the entries of `Titans` without `momentum`.
    """


@dataclass(frozen=True)
class YaadConfig(MirasConfig):
    """Configuration of `Yaad`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {**_PAPER_VALUES, "measure": "coordinate"}

    measure: Literal["norm", "coordinate"] = "norm"
    """Quantity that is compared with the threshold: the length of the error vector (`norm`), or each of its
    coordinates (`coordinate`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.follow_paper and self.measure != "coordinate":
            raise ValueError(
                f"follow_paper with measure={self.measure!r}: needs measure='coordinate', because a "
                "threshold has one value per channel"
            )

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
    """Stack of feed-forward layers and neural memories with a Huber loss.

    Section 5.3, equation 26. The Huber loss is half the squared error up to a threshold, and linear beyond
    the threshold. So it is robust to outliers: the gradient of the loss with respect to the output never
    exceeds the threshold. The threshold is the softplus of a linear function of the token. Weights decay
    towards the learned initial weights, as in Titans.

    Besides the differences of all three memories, there is one: the threshold applies to the length of an
    error vector, so clipping preserves its direction. `measure="coordinate"` clips each coordinate
    separately, as in the paper. Initial thresholds are about as large as the length of a typical error.

    State: the entries of `Miras`.
    """


@dataclass(frozen=True)
class MonetaConfig(MirasConfig):
    """Configuration of `Moneta`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {**_PAPER_VALUES, "max_step": 0.02}

    exponent: float = 3.0
    """Exponent p of the errors in the loss."""
    sharpness: float = 10.0
    """Slope of the smooth function that replaces the sign of an error; unused if `exponent` is 2."""
    q: float = 4.0
    """Order q of the norm. The accumulated weights are divided by their q-norm to the power q - 2; 2 disables
    the division."""

    @property
    def learning(self) -> Learning:
        """Learning rule: loss of the networks, and map from accumulated gradient steps to weights."""
        return Learning("gelu", Power(self.exponent, self.sharpness), QNorm(self.q))

    def build_initial_weights(self) -> list[Tensor]:
        """Return the untrained initial dual weights of the layers of a head's network."""
        duals = [torch.randn(self.heads, a, b) for a, b in self.layer_widths]
        return [x / torch.linalg.vector_norm(x, self.q, dim=(-1, -2), keepdim=True) for x in duals]

    def build(self) -> Moneta:
        """Return a newly initialized memory."""
        return Moneta(self)


class Moneta(Miras):
    """Stack of feed-forward layers and neural memories whose weights are divided by a power of their norm.

    The loss is an l_p norm. Section 5.3, equations 24 and 25:

        A_t = alpha_t A_{t-1} - eta_t gradient(|M(k_t) - v_t|_p^p),    W_t = A_t / norm_q(A_t)^(q - 2),

    for each weight matrix separately. k_t and v_t are the key and value of step t, M is the network with the
    weights W, alpha_t is the retention gate and eta_t the step size. A are the dual weights, which accumulate
    the steps. The larger A is, the less a step changes W. The paper uses p = 3 and q = 4.

    Besides the differences of all three memories, there are two. First, the gradient is exact for p = 2.
    For any other p, a smooth function replaces the sign of each error, as in the paper. Second, initial dual
    weights have a q-norm of 1, so W = A at the start.

    State: the entries of `Miras`, with the dual weights in place of the weights.
    """


@dataclass(frozen=True)
class MemoraConfig(MirasConfig):
    """Configuration of `Memora`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {**_PAPER_VALUES, "forgets_to": "uniform"}

    total: float | None = None
    """Sum of the weights into each output unit of the network. Default: the square root of a head's width."""
    forgets_to: Literal["born", "uniform"] = "born"
    """Target of the decay: the learned initial weights (`born`) or equal weights (`uniform`)."""

    @property
    def learning(self) -> Learning:
        """Learning rule: loss of the networks, and map from accumulated gradient steps to weights."""
        total = (self.dim / self.heads) ** 0.5 if self.total is None else self.total
        return Learning("gelu", mirror=Simplex(total, self.forgets_to))

    def build(self) -> Memora:
        """Return a newly initialized memory."""
        return Memora(self)


class Memora(Miras):
    """Stack of feed-forward layers and neural memories whose weights are distributions.

    Section 5.3, equations 21 and 27. The loss is that of Titans. Retention is the divergence from the
    previous weights plus an entropy term. The weights after step t are

        W_t = c softmax(alpha_t log W_{t-1} - eta_t gradient)

    for the n weights W of one output, with the retention gate alpha and the step size eta. The weights are
    positive and always sum to c, by default the square root of a head's width. The parameters and the state
    hold (c / n) log W.

    Besides the differences of all three memories, there are two. First, log W decays towards its learned
    initial value. In the equation, log W decays towards zero (`forgets_to="uniform"`). All outputs of a layer
    then become equal, and a network of two layers cannot separate them again. Second, eta is n / c times the
    step size of the token. A weight of c / n therefore moves as far as in Titans.

    State: the entries of `Miras`, with scaled logarithms of the weights in place of the weights.
    """

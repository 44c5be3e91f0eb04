"""xLSTM: a stack of mLSTM and sLSTM blocks in any order (Beck et al. 2024, arXiv 2405.04517, section 2.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from scrubjay.memory.contract.base import MemoryConfig, PaperValues
from scrubjay.memory.linear.layers import LayeredMemory
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.xlstm.mlstm import MLSTMBlock
from scrubjay.memory.xlstm.slstm import SLSTMBlock

_NARROWEST_HEAD = 8


@dataclass(frozen=True)
class XLSTMConfig(MemoryConfig):
    """Configuration of `XLSTM`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {"log_input_gate": 0.0}

    blocks: str = "ms"
    """Blocks from the first to the last: a letter m for an mLSTM block, s for an sLSTM block. The paper's
    xLSTM[7:1] has seven m for each s."""
    num_heads: int | None = None
    """Heads per block. Default: the largest divisor of `dim` up to 4 whose heads are at least 8 wide. The
    norm of two or three values is close to a step function, whose gradient is inexact."""
    convolution: int = 4
    """Number of steps in the causal convolution. With 1, a step uses only its own input."""
    log_input_gate: float = -5.0
    """Mean logarithm of the initial input gates of mLSTM blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("convolution")
        if not math.isfinite(self.log_input_gate):
            raise ValueError(f"log_input_gate={self.log_input_gate}: must be finite")
        if not self.blocks or set(self.blocks) - {"m", "s"}:
            raise ValueError(
                f"blocks={self.blocks!r}: use the letters m (mLSTM) and s (sLSTM), such as 'mms'"
            )
        resolve_heads(self.dim, self.num_heads)

    @property
    def heads(self) -> int:
        """Number of heads per block."""
        return resolve_heads(self.dim, self.num_heads, _NARROWEST_HEAD if self.num_heads is None else 1)

    @property
    def feed_forward_width(self) -> int:
        """Hidden width of the feed-forward block of an sLSTM block: 4/3 of `dim`, as in the paper."""
        return round(4 / 3 * self.dim)

    def build(self) -> XLSTM:
        """Return a newly initialized memory."""
        return XLSTM(self)


class XLSTM(LayeredMemory["MLSTMBlock | SLSTMBlock"]):
    """Stack of mLSTM and sLSTM blocks.

    State: the entries of `MLSTMBlock` or `SLSTMBlock` for every block l, with the suffix `_l`.
    """

    def __init__(self, config: XLSTMConfig) -> None:
        dim, heads, convolution = config.dim, config.heads, config.convolution
        super().__init__(
            config,
            [
                MLSTMBlock(dim, heads, convolution, config.log_input_gate)
                if letter == "m"
                else SLSTMBlock(dim, heads, convolution, config.feed_forward_width)
                for letter in config.blocks
            ],
        )

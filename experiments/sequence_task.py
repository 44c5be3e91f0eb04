"""Memories as sequence models: a small model of tokens over one memory learns a suite of synthetic sequences.

All memories get the same number of parameters, so that what differs is what and how they remember.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from scrubjay.experiments.suites import MQAR, Suite
from scrubjay.experiments.supervised import SupervisedConfig


@dataclass(frozen=True)
class SequenceTaskConfig(SupervisedConfig):
    """A sequence model over a memory learns a suite, and is tested with more to remember and for longer."""

    kind: ClassVar[str] = "sequence-task"
    axes: ClassVar[tuple[str, str]] = ("num_items", "length")

    recipe: str = "mqar"
    """Name of the task in run directories and plots."""
    suite: Suite = field(default_factory=MQAR)
    """What to learn; batches have 2, 4, ... up to `suite.num_items` things to remember by turns, see `counts`."""
    num_blocks: int = 2
    """Blocks of the model, each with a memory and a feed-forward layer."""
    parameters: int = 200_000
    """Trained numbers of the whole model, whatever its memory: feed-forward layers are made wide enough."""
    batch_rows: int = 32
    """Sequences per gradient step."""
    total_steps: int = 2_000_000
    """Tokens of the whole run, over all rows of all batches; the last batch is finished."""
    eval_rows: int = 64
    """Sequences, of a seed not trained on, behind every accuracy in result.json."""
    eval_items: tuple[int, ...] = (2, 4, 16)
    """How much there is to remember in the test, the trained number aside."""
    eval_longer: tuple[int, ...] = (2, 4, 8, 16)
    """How many times longer sequences are in the test, the trained length aside."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_blocks", "parameters", "batch_rows", "eval_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for times in self.eval_longer:
            if times < 1:
                raise ValueError(f"eval_longer={times}: a test is at least once as long as training")

    @property
    def trained(self) -> tuple[int, int]:
        """Things to remember, at most, and tokens of a sequence."""
        return self.suite.num_items, self.suite.length

    @property
    def tested(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers of things to remember, and lengths."""
        return self.eval_items, tuple(self.suite.length * times for times in self.eval_longer)

    @property
    def axis_labels(self) -> tuple[str, str]:
        """The two sizes in words."""
        return self.suite.items, "tokens of a sequence"

    @property
    def engine(self) -> Callable[..., Any]:
        """`SequenceEngine`."""
        from scrubjay.experiments.sequence_engine import SequenceEngine  # reads this file

        return SequenceEngine

    def chance(self, count: int) -> float:
        """The suite's own, for who sees one token; two blocks' convolutions see five, and may do a little better."""
        return self.suite.chance

    def check_parts(self) -> None:
        """Make suites of all sizes in training and test, and the model."""
        from scrubjay.experiments.sequence_engine import make_model

        for count, length in [*self.tests, *((count, self.suite.length) for count in self.counts)]:
            self.suite.resized(count, length)
        make_model(self)  # pyright: ignore[reportArgumentType]  (sees this file twice)

"""Memories as sequence models: a small model of tokens over one memory learns a suite of synthetic sequences.

All memories get the same number of parameters, so that what differs is what and how they remember.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scrubjay.experiments.kinds.supervised import SupervisedConfig, SupervisedEngine
from scrubjay.experiments.runs.room import ROOM
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.tasks.suites import IGNORED, MQAR, Sequences, Suite
from scrubjay.memory import name_of
from scrubjay.memory.sketch import nbytes, sketch, state_nbytes

if TYPE_CHECKING:
    from scrubjay.memory.sequence import SequenceModel

_EVAL_TOKENS = 8192
_PER_TOKEN = 32  # numbers that a block keeps of a token for its gradient, by its width
_PER_TEST = 2**16


@dataclass(frozen=True)
class SequenceTaskConfig(SupervisedConfig):
    """A sequence model over a memory learns a suite, and is tested with more to remember and for longer."""

    kind: ClassVar[str] = "sequence-task"
    axes: ClassVar[tuple[str, str]] = ("num_items", "length")
    shaped_by: ClassVar[tuple[str, ...]] = ("suite", "memory", "num_blocks", "parameters")

    recipe: str = "mqar"
    """Name of the task in run directories and plots."""
    suite: Suite = field(default_factory=MQAR)
    """What to learn; batches have 2, 4, ... up to `suite.num_items` things to remember by turns, see
    `counts`."""
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

    def chance(self, count: int) -> float:
        """The suite's own, for who sees one token; two blocks' convolutions see five, and may do better."""
        return self.suite.chance

    def rough_bytes(self) -> dict[str, int]:
        """Return about how many bytes training and test take, by what takes them."""
        suite, rows = self.suite, self.batch_rows
        model = sketch(self.make_model, ROOM)
        counts, longest = max(self.trained[0], *self.eval_items, 1), max(1, *self.eval_longer)
        tests = (len(self.eval_items) + 1) * (len(self.eval_longer) + 1)
        tested = min(self.eval_rows, max(1, _EVAL_TOKENS // suite.length))
        name, length = f"memory={name_of(self.memory)}", f"suite.length={suite.length:,}"
        read = rows * suite.length * (suite.vocab_size + _PER_TOKEN * self.memory.dim * self.num_blocks)
        most = max(rows, tested)
        drawn = most * (counts + suite.vocab_size)
        return {
            f"{name}, parameters={self.parameters:,}": 4 * nbytes(model.state_dict()),
            f"{name} of batch_rows={rows:,}, {tested:,} tested": state_nbytes(model, most),
            f"batch_rows={rows:,}, {length}": 4 * read,
            f"eval_longer={longest:,}, {length}": 64 * tested * suite.length * longest,
            f"eval_items={counts:,}, suite.vocab_size={suite.vocab_size:,}": 64 * drawn,
            f"{tests:,} tests": tests * _PER_TEST,
        }

    def make_model(self) -> SequenceModel:
        """Return a model of the experiment's size. Raises ValueError if its memory alone is larger."""
        # For hundreds of modules of a hub, which recipes and commands need not wait for.
        from scrubjay.memory.sequence import SequenceConfig, match_parameters

        sizes = SequenceConfig(self.suite.vocab_size, self.memory, self.num_blocks)
        return match_parameters(sizes, self.parameters).build()

    def answered(self, model: Any, count: int, span: int) -> tuple[int, int]:
        """Return how many questions a model answers right, of how many, in the test of these sizes."""
        return accuracy(model, self, count, span)

    def check_parts(self) -> None:
        """Make suites of all sizes in training and test, and the model."""
        for count, length in [*self.tests, *((count, self.suite.length) for count in self.counts)]:
            self.suite.resized(count, length)
        self.make_model()


class SequenceEngine(SupervisedEngine):
    """Draws new sequences for every update; a batch follows from the run's seed and the update's number."""

    config: SequenceTaskConfig
    model: SequenceModel

    def _draw(self, count: int) -> tuple[Sequences, int]:
        suite = self.config.suite.resized(count, self.config.suite.length)
        batch = suite.draw(self.config.batch_rows, derive_seed(self.config.seed, "sampling"), self.turn)
        return batch, batch.tokens.numel()

    def _answer(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        logits, _ = self.model(batch.tokens, self.model.initial_state(len(batch.tokens)))
        scored = batch.labels != IGNORED
        return logits[scored], batch.labels[scored]

    def _evaluate(self) -> dict[str, Any]:
        sizes = {"parameters": self.model.num_parameters, "state_bytes": self.model.state_bytes()}
        return super()._evaluate() | sizes


@torch.no_grad()
def accuracy(
    model: SequenceModel, config: SequenceTaskConfig, num_items: int, length: int
) -> tuple[int, int]:
    """Return how many labels were named, and of how many, in sequences of the evaluation's seed.

    The model reads in pieces as long as those it was trained on, so that a longer test takes no more memory.
    """
    suite = config.suite.resized(num_items, length)
    seed = derive_seed(config.seed, "evaluation")
    rows = min(config.eval_rows, max(1, _EVAL_TOKENS // config.suite.length))
    right = asked = 0
    for index, first in enumerate(range(0, config.eval_rows, rows)):
        tokens, labels = suite.draw(min(rows, config.eval_rows - first), seed, index)
        state = model.initial_state(len(tokens))
        for piece, label in zip(
            tokens.split(config.suite.length, dim=1), labels.split(config.suite.length, dim=1), strict=True
        ):
            logits, state = model(piece, state)
            scored = label != IGNORED
            right += int((logits[scored].argmax(dim=-1) == label[scored]).sum())
            asked += int(scored.sum())
    return right, asked

"""Sequence-modeling experiment: a small token model with one memory learns a suite of synthetic sequences.

All models get the same number of parameters, so that only their memories differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scrubjay.experiments.cli.failures import check_at_least
from scrubjay.experiments.resources import MEMORY_LIMIT
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.supervised import SupervisedConfig, SupervisedEngine
from scrubjay.experiments.tasks.sequences import IGNORED, MQAR, Sequences, Suite
from scrubjay.memory import name_of
from scrubjay.memory.sketch import nbytes, sketch, state_nbytes

if TYPE_CHECKING:
    from scrubjay.memory.sequence import SequenceModel


_EVAL_TOKENS = 8192
_PER_TOKEN = 32  # numbers saved per token and block for the backward pass, per unit of width
_PER_TEST = 2**16


@dataclass(frozen=True)
class SequenceTaskConfig(SupervisedConfig):
    """Config of a sequence model that learns a suite of synthetic sequences.

    The model is also tested on sequences that are longer than in training, and on other numbers of items.
    """

    kind: ClassVar[str] = "sequence-task"
    axes: ClassVar[tuple[str, str]] = ("num_items", "length")
    shape_fields: ClassVar[tuple[str, ...]] = ("suite", "memory", "num_blocks", "parameters")

    recipe: str = "mqar"
    """Task name in run directories and plots."""
    suite: Suite = field(default_factory=MQAR)
    """Suite of synthetic sequences. The number of items to remember changes with every batch: 2, 4, ... up to
    `suite.num_items` in a cycle (see `counts`)."""
    curriculum: float = 0.0
    """Share of the training steps over which the numbers of items are added one after another, the smallest
    first. With 0, all numbers are used from the start."""
    num_blocks: int = 2
    """Number of blocks, each with a memory and a feed-forward layer."""
    parameters: int = 200_000
    """Approximate parameter count of the model. The width of feed-forward layers is chosen to match it."""
    batch_rows: int = 32
    """Sequences per gradient step."""
    total_steps: int = 2_000_000
    """Total number of training tokens, rounded up to whole batches."""
    eval_rows: int = 64
    """Number of sequences for each accuracy in result.json. Their seed is not used in training."""
    eval_items: tuple[int, ...] = (2, 4, 16)
    """Numbers of items to remember in the tests, in addition to the training value `suite.num_items`."""
    eval_longer: tuple[int, ...] = (2, 4, 8, 16)
    """Lengths of test sequences as multiples of the training length, which is always tested as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "num_blocks", "parameters", "batch_rows", "eval_rows")
        for times in self.eval_longer:
            if times < 1:
                raise ValueError(f"eval_longer={times}: must be at least 1; 1 is the training length")
        if not 0 <= self.curriculum <= 1:
            raise ValueError(f"curriculum={self.curriculum}: must be a share from 0 to 1")

    @property
    def counts(self) -> list[int]:
        """Numbers of items to remember in training; batches cycle through them.

        These are 2, 4, 8, ... and the maximum, or all numbers from 1 if the suite has `every_count`."""
        most = self.train_sizes[0]
        return list(range(1, most + 1)) if self.suite.every_count else super().counts

    def counts_at(self, step: int, total: int) -> list[int]:
        """Return the numbers of items at a training step of `total` steps, as the curriculum has added them.

        A stage lasts `curriculum * total` steps divided by the number of additions.
        """
        counts = self.counts
        span = self.curriculum * total
        if step >= span:
            return counts
        return counts[: 1 + int(step / span * (len(counts) - 1))]

    @property
    def train_sizes(self) -> tuple[int, int]:
        """Maximum number of items to remember, and tokens per sequence, in training."""
        return self.suite.num_items, self.suite.length

    @property
    def eval_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers of items to remember in the tests, and lengths of test sequences in tokens."""
        return self.eval_items, tuple(self.suite.length * times for times in self.eval_longer)

    @property
    def axis_labels(self) -> tuple[str, str]:
        """Axis labels in plots: for the number of items to remember, and for the sequence length."""
        return self.suite.items, "tokens of a sequence"

    def chance(self, count: int) -> float:
        """Return the best possible accuracy of a model that sees only the current token.

        A `SequenceModel` without memory may exceed this accuracy: the convolutions of two blocks cover five
        tokens.
        """
        return self.suite.chance

    def rough_bytes(self) -> dict[str, int]:
        """Return a dict from settings, such as `batch_rows=64`, to estimated bytes in training and test."""
        suite, rows = self.suite, self.batch_rows
        model = sketch(self.make_model, MEMORY_LIMIT)
        counts, longest = max(self.train_sizes[0], *self.eval_items, 1), max(1, *self.eval_longer)
        tests = (len(self.eval_items) + 1) * (len(self.eval_longer) + 1)
        eval_rows = min(self.eval_rows, max(1, _EVAL_TOKENS // suite.length))
        name, length = f"memory={name_of(self.memory)}", f"suite.length={suite.length:,}"
        activations = (
            rows * suite.length * (suite.vocab_size + _PER_TOKEN * self.memory.dim * self.num_blocks)
        )
        most = max(rows, eval_rows)
        samples = most * (counts + suite.vocab_size)
        return {
            f"{name}, parameters={self.parameters:,}": 4 * nbytes(model.state_dict()),
            f"{name} of batch_rows={rows:,}, {eval_rows:,} tested": state_nbytes(model, most),
            f"batch_rows={rows:,}, {length}": 4 * activations,
            f"eval_longer={longest:,}, {length}": 64 * eval_rows * suite.length * longest,
            f"eval_items={counts:,}, suite.vocab_size={suite.vocab_size:,}": 64 * samples,
            f"{tests:,} tests": tests * _PER_TEST,
        }

    def make_model(self) -> SequenceModel:
        """Return a new model with about `parameters` parameters. Raises ValueError if its memory has more."""
        # This imports hundreds of modules of a hub; recipes and commands do not need them.
        from scrubjay.memory.sequence import SequenceConfig, match_parameters

        sizes = SequenceConfig(self.suite.vocab_size, self.memory, self.num_blocks)
        return match_parameters(sizes, self.parameters).build()

    @torch.no_grad()
    def count_correct(self, model: Any, count: int, span: int) -> tuple[int, int]:
        """Return the numbers of correctly predicted labels and of all labels, for the evaluation seed.

        Sequences have `span` tokens and `count` items to remember. The model reads a sequence in chunks of
        the training length, so that longer sequences need no more memory.
        """
        suite, chunk = self.suite.with_sizes(count, span), self.suite.length
        seed = derive_seed(self.seed, "evaluation")
        rows = min(self.eval_rows, max(1, _EVAL_TOKENS // chunk))
        correct = total = 0
        for index, first in enumerate(range(0, self.eval_rows, rows)):
            tokens, labels = suite.draw(min(rows, self.eval_rows - first), seed, index)
            state = model.initial_state(len(tokens))
            for piece, label in zip(tokens.split(chunk, dim=1), labels.split(chunk, dim=1), strict=True):
                logits, state = model(piece, state)
                has_label = label != IGNORED
                correct += int((logits[has_label].argmax(dim=-1) == label[has_label]).sum())
                total += int(has_label.sum())
        return correct, total

    def check_parts(self) -> None:
        """Build the model, and the suite of each training and test size. Invalid settings raise errors."""
        for count, length in [*self.tests, *((count, self.suite.length) for count in self.counts)]:
            self.suite.with_sizes(count, length)
        self.make_model()


class SequenceEngine(SupervisedEngine):
    """Engine of sequence experiments. A batch depends only on the seed of the run and the batch index."""

    config: SequenceTaskConfig
    model: SequenceModel

    def _sample_batch(self, count: int) -> tuple[Sequences, int]:
        suite = self.config.suite.with_sizes(count, self.config.suite.length)
        batch = suite.draw(
            self.config.batch_rows, derive_seed(self.config.seed, "sampling"), self.batch_index
        )
        return batch, batch.tokens.numel()

    def _compute_logits(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        logits, _ = self.model(batch.tokens, self.model.initial_state(len(batch.tokens)))
        has_label = batch.labels != IGNORED
        return logits[has_label], batch.labels[has_label]

    def _evaluate(self) -> dict[str, Any]:
        sizes = {"parameters": self.model.num_parameters, "state_bytes": self.model.state_bytes()}
        return super()._evaluate() | sizes

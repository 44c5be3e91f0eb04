"""The engine of sequence tasks: what a suite asks, answered by a sequence model token after token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scrubjay.experiments.seeding import derive_seed
from scrubjay.experiments.sequence_task import SequenceTaskConfig
from scrubjay.experiments.suites import IGNORED, Sequences
from scrubjay.experiments.supervised_engine import SupervisedEngine
from scrubjay.memory.sequence import SequenceConfig, SequenceModel, match_parameters

_EVAL_TOKENS = 8192


class SequenceEngine(SupervisedEngine):
    """Draws new sequences for every update; a batch is a function of the run's seed and the update's number."""

    config: SequenceTaskConfig
    model: SequenceModel

    def _make_model(self) -> SequenceModel:
        return make_model(self.config)

    def _draw(self, count: int) -> tuple[Sequences, int]:
        suite = self.config.suite.resized(count, self.config.suite.length)
        batch = suite.draw(self.config.batch_rows, derive_seed(self.config.seed, "sampling"), self.turn)
        return batch, batch.tokens.numel()

    def _answer(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        logits, _ = self.model(batch.tokens, self.model.initial_state(len(batch.tokens)))
        scored = batch.labels != IGNORED
        return logits[scored], batch.labels[scored]

    def _test(self, count: int, span: int) -> tuple[int, int]:
        return accuracy(self.model, self.config, count, span)

    def _evaluate(self) -> dict[str, Any]:
        sizes = {"parameters": self.model.num_parameters, "state_bytes": self.model.state_bytes()}
        return super()._evaluate() | sizes


def make_model(config: SequenceTaskConfig) -> SequenceModel:
    """Return a new model of the experiment's size. Raises ValueError if its memory alone is larger."""
    sizes = SequenceConfig(config.suite.vocab_size, config.memory, config.num_blocks)
    return match_parameters(sizes, config.parameters).build()


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

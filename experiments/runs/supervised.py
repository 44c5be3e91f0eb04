"""Base config and engine of supervised experiments, which also test task sizes not used in training."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.agents.rl.learner import check_numbers, load_optimizer_state
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.config import Experiment
from scrubjay.experiments.runs.engine import Engine
from scrubjay.experiments.statistics import wilson_interval
from scrubjay.kernels.derivatives import retain_freed_memory
from scrubjay.memory import MemoryConfig, make_config, name_of

_MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class SupervisedConfig(Experiment):
    """Base config of supervised experiments, whose tasks have two sizes.

    The first size is the number of items to remember, such as dancers or key-value pairs. The second size is
    the time span, such as the steps between dances or the tokens of a sequence.
    """

    shape_fields: ClassVar[tuple[str, ...]] = ("memory",)
    axes: ClassVar[tuple[str, str]]
    """Names that result.json uses for the two sizes of a task, such as ("num_items", "length")."""

    recipe: str = ""
    """Task name in run directories and plots."""
    memory: MemoryConfig = field(default_factory=lambda: make_config("gru", dim=64))
    """Memory config."""
    learning_rate: float = 2e-3
    """Initial learning rate of Adam. It decays linearly and would reach 0 after the original `total_steps`.
    If the run is trained further, all additional updates use the rate of the last original update."""
    total_steps: int = 3_000_000
    """Total number of sequence steps in training, over all sequences; rounded up to whole batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate}: must be positive and finite")
        check_numbers(self)

    @property
    def label(self) -> str:
        """Registered name of the memory."""
        return name_of(self.memory)

    @property
    def has_schedule(self) -> bool:
        """True: the learning rate falls, and a curriculum depends on the planned steps."""
        return True

    @property
    @abstractmethod
    def train_sizes(self) -> tuple[int, int]:
        """Sizes of training tasks: the maximum number of items to remember, and the time span."""

    @property
    @abstractmethod
    def eval_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes of test tasks besides the training sizes: numbers of items to remember, and time spans."""

    @property
    @abstractmethod
    def axis_labels(self) -> tuple[str, str]:
        """Axis labels in plots: for the number of items to remember, and for the time span."""

    @abstractmethod
    def chance(self, count: int) -> float:
        """Return the best possible accuracy without memory, for `count` items to remember."""

    @abstractmethod
    def count_correct(self, model: Any, count: int, span: int) -> tuple[int, int]:
        """Return the numbers of correct answers and of questions in test tasks of one size.

        `count` is the number of items to remember, and `span` is the time span.
        """

    @abstractmethod
    def check_parts(self) -> None:
        """Build the model and the tasks once. Raises ValueError or TypeError naming the invalid setting."""

    @property
    def counts(self) -> list[int]:
        """Numbers of items to remember in training: 2, 4, 8, ... and the maximum; batches cycle through them.

        With only the maximum number of items, learning hardly starts, since the chance level is low. With
        only a few items, the model may not generalize to more items.
        """
        most = self.train_sizes[0]
        powers = [2**power for power in range(1, most.bit_length())]
        return [count for count in powers if count < most] + [most]

    def counts_at(self, step: int, total: int) -> list[int]:
        """Return the numbers of items to remember at a training step of `total` steps: all of them."""
        return self.counts

    @property
    def success_without_memory(self) -> float:
        """Best possible accuracy without memory, for the maximum number of items to remember in training."""
        return self.chance(self.train_sizes[0])

    @property
    def tests(self) -> list[tuple[int, int]]:
        """All tested pairs `(number of items to remember, time span)`."""
        counts, spans = (
            sorted({train_size, *test_sizes})
            for train_size, test_sizes in zip(self.train_sizes, self.eval_sizes, strict=True)
        )
        return [(count, span) for count in counts for span in spans]

    def accuracies(self, result: dict[str, Any]) -> dict[tuple[int, int], float]:
        """Return a dict of the test accuracies in the result of a run.

        Its keys are pairs of the number of items to remember and the time span."""
        count, span = self.axes
        return {(test[count], test[span]): test["right"] / test["asked"] for test in result["tests"]}

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return a copy of this config with another memory."""
        return dataclasses.replace(self, memory=memory)

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the model and the tasks once. Raises ValueError or TypeError naming the invalid setting.

        Also raises ValueError if `ray` is not None, since supervised experiments are trained in one process.
        """
        if ray is not None:
            raise ValueError(f"{self.recipe} is trained in one process; remove --engine ray")
        self.check_parts()


class SupervisedEngine(Engine):
    """Engine that trains by cross-entropy. It measures the metrics of a batch before the gradient step."""

    config: SupervisedConfig

    @abstractmethod
    def _sample_batch(self, count: int) -> tuple[Any, int]:
        """Return the next batch with `count` items to remember, and the number of steps in the batch."""

    @abstractmethod
    def _compute_logits(
        self, batch: Any
    ) -> tuple[Float[Tensor, "questions choices"], Int[Tensor, " questions"]]:
        """Return the logits for every question of a batch, and the correct answers."""

    def _build(self) -> None:
        retain_freed_memory()
        self.model = self._load_initial_weights(self.config.make_model())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config.learning_rate)
        self.batch_index = 0

    def _learn(self) -> tuple[int, dict[str, float]]:
        began = time.perf_counter()
        counts = self.config.counts_at(self.step, self.config.first_plan)
        count = counts[self.batch_index % len(counts)]
        batch, steps = self._sample_batch(count)
        self.batch_index += 1
        sampling_end = time.perf_counter()
        logits, answers = self._compute_logits(batch)
        loss = functional.cross_entropy(logits, answers)
        forward_end = time.perf_counter()
        rate = self._set_learning_rate()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRAD_NORM)
        self.optimizer.step()
        update_end = time.perf_counter()
        # The learning curve shows the maximum number of items; accuracy is higher with fewer items.
        name = "charts/success" if count == self.config.train_sizes[0] else "charts/success_of_fewer"
        return steps, {
            f"charts/{self.config.axes[0].removeprefix('num_')}": count,
            name: (logits.argmax(dim=-1) == answers).float().mean().item(),
            "losses/cross_entropy": loss.item(),
            "charts/learning_rate": rate,
            "time/SPS_env": steps / (sampling_end - began),
            "time/SPS_policy": steps / (forward_end - sampling_end),
            "time/SPS_learner": steps / (update_end - forward_end),
        }

    def _set_learning_rate(self) -> float:
        """Set and return the learning rate of this update.

        The rate decays over the initial total of steps, `first_plan`. It stays constant in an extension."""
        groups = self.optimizer.param_groups
        if self.step < self.config.first_plan:
            for group in groups:
                group["lr"] = self.config.learning_rate * (1 - self.step / self.config.first_plan)
        return groups[0]["lr"]

    def _get_parts(self) -> dict[str, Any]:
        return {"optimizer": copy.deepcopy(self.optimizer.state_dict()), "turn": self.batch_index}

    def _set_parts(self, training: dict[str, Any]) -> None:
        load_optimizer_state(self.optimizer, training["optimizer"])
        self.batch_index = training["turn"]

    def _evaluate(self) -> dict[str, Any]:
        tests = []
        for sizes in self.config.tests:
            correct, total = self.config.count_correct(self.model, *sizes)
            tests.append(
                {**dict(zip(self.config.axes, sizes, strict=True)), "right": correct, "asked": total}
            )
            if sizes == self.config.train_sizes:
                low, high = wilson_interval(correct, total)
                scores = {"success": correct / total, "success_low": low, "success_high": high}
        return {**scores, "tests": tests}

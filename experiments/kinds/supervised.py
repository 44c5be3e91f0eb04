"""What supervised experiments share: a memory learns to answer, and is tested at other sizes, too."""

from __future__ import annotations

import copy
import dataclasses
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.agents.rl.optimizers import restore
from scrubjay.experiments.kinds.engine import Engine
from scrubjay.experiments.kinds.plan import Plan
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.statistics import wilson_interval
from scrubjay.memory import MemoryConfig, make_config, name_of
from scrubjay.memory.parts.heap import keep_freed

_MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class SupervisedConfig(Plan, ABC):
    """A memory learns by cross-entropy. Its task has two sizes: how much to remember, and for how long."""

    kind: ClassVar[str]
    """Name in config.json of the class to rebuild."""
    acts: ClassVar[str | None] = None
    shaped_by: ClassVar[tuple[str, ...]] = ("memory",)
    axes: ClassVar[tuple[str, str]]
    """The sizes' names in result.json: how much, how long."""

    recipe: str = ""
    """Name of the task in run directories and plots."""
    memory: MemoryConfig = field(default_factory=lambda: make_config("gru", dim=64))
    """What remembers."""
    learning_rate: float = 2e-3
    """Adam's step size at the start; falls linearly, to zero at the end of the first plan."""
    total_steps: int = 3_000_000
    """Steps of the whole run, over all rows of all batches; the last batch is finished."""
    seed: int = 0
    """Source of all randomness."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_steps < 1:
            raise ValueError(f"total_steps={self.total_steps}: must be at least 1")
        for name in ("seed", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}: must be positive")

    @property
    def label(self) -> str:
        """The memory's registered name."""
        return name_of(self.memory)

    @property
    def planned_steps(self) -> int:
        """`total_steps`."""
        return self.total_steps

    @property
    @abstractmethod
    def trained(self) -> tuple[int, int]:
        """The sizes trained at: how much, at most, and how long."""

    @property
    @abstractmethod
    def tested(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sizes in the test, the trained ones aside: how much, and how long."""

    @property
    @abstractmethod
    def axis_labels(self) -> tuple[str, str]:
        """The two sizes in words."""

    @abstractmethod
    def chance(self, count: int) -> float:
        """The best accuracy there is without memory, where there are `count` things to remember."""

    @abstractmethod
    def make_model(self) -> nn.Module:
        """Return the model as it is at step 0."""

    @abstractmethod
    def answered(self, model: Any, count: int, span: int) -> tuple[int, int]:
        """Return how many questions a model answers right, of how many, in the test of these sizes."""

    @abstractmethod
    def check_parts(self) -> None:
        """Build the parts once. Raises ValueError or TypeError naming what does not fit."""

    @property
    def counts(self) -> list[int]:
        """How much there is to remember in the training's batches, by turns: 2, 4, ... and the most.

        Of the most alone learning hardly begins, so likely is a wrong choice and so low chance; and what is
        learned of a few alone may be of no use for more.
        """
        most = self.trained[0]
        doubled = [2**power for power in range(1, most.bit_length())]
        return [count for count in doubled if count < most] + [most]

    @property
    def success_without_memory(self) -> float:
        """`chance` at the most there is to remember in training."""
        return self.chance(self.trained[0])

    @property
    def tests(self) -> list[tuple[int, int]]:
        """All pairs of sizes in the test."""
        counts, spans = (
            sorted({trained, *tested}) for trained, tested in zip(self.trained, self.tested, strict=True)
        )
        return [(count, span) for count in counts for span in spans]

    def accuracies(self, result: dict[str, Any]) -> dict[tuple[int, int], float]:
        """Return the share of questions answered right, by the sizes in the test, from a run's result."""
        count, span = self.axes
        return {(test[count], test[span]): test["right"] / test["asked"] for test in result["tests"]}

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return the same experiment with another memory."""
        return dataclasses.replace(self, memory=memory)

    def rough_bytes(self) -> dict[str, int]:
        """Return about how many bytes training and test take, by what takes them; none if nobody knows."""
        return {}

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the parts once. Raises ValueError or TypeError naming what does not fit, or if on Ray."""
        if ray is not None:
            raise ValueError(f"{self.recipe} is trained in one process; leave --engine ray away")
        self.check_parts()


class SupervisedEngine(Engine):
    """Learns by cross-entropy; the loss of each batch is measured before it is learned from."""

    config: SupervisedConfig

    @abstractmethod
    def _draw(self, count: int) -> tuple[Any, int]:
        """Return the next batch of `count` things to remember, and how many steps it has."""

    @abstractmethod
    def _answer(self, batch: Any) -> tuple[Float[Tensor, "questions choices"], Int[Tensor, " questions"]]:
        """Return the model's logits for every question of a batch, and the right answers."""

    def _build(self) -> None:
        keep_freed()
        self.model = self._begun(self.config.make_model())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config.learning_rate)
        self.turn = 0

    def _learn(self) -> tuple[int, dict[str, float]]:
        began = time.perf_counter()
        count = self.config.counts[self.turn % len(self.config.counts)]
        batch, steps = self._draw(count)
        self.turn += 1
        drawn = time.perf_counter()
        logits, answers = self._answer(batch)
        loss = functional.cross_entropy(logits, answers)
        forward = time.perf_counter()
        rate = self._set_learning_rate()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRAD_NORM)
        self.optimizer.step()
        ended = time.perf_counter()
        # The learning curve is of the most there is to remember; of fewer the same weights tell more.
        name = "charts/success" if count == self.config.trained[0] else "charts/success_of_fewer"
        return steps, {
            f"charts/{self.config.axes[0].removeprefix('num_')}": count,
            name: (logits.argmax(dim=-1) == answers).float().mean().item(),
            "losses/cross_entropy": loss.item(),
            "charts/learning_rate": rate,
            "time/SPS_env": steps / (drawn - began),
            "time/SPS_policy": steps / (forward - drawn),
            "time/SPS_learner": steps / (ended - forward),
        }

    def _set_learning_rate(self) -> float:
        """Set the rate of this update, and return it; beyond the first plan the last one stays."""
        groups = self.optimizer.param_groups
        if self.step < self.config.first_plan:
            for group in groups:
                group["lr"] = self.config.learning_rate * (1 - self.step / self.config.first_plan)
        return groups[0]["lr"]

    def _get_parts(self) -> dict[str, Any]:
        return {"optimizer": copy.deepcopy(self.optimizer.state_dict()), "turn": self.turn}

    def _set_parts(self, training: dict[str, Any]) -> None:
        restore(self.optimizer, training["optimizer"])
        self.turn = training["turn"]

    def _evaluate(self) -> dict[str, Any]:
        tests = []
        for sizes in self.config.tests:
            right, asked = self.config.answered(self.model, *sizes)
            tests.append({**dict(zip(self.config.axes, sizes, strict=True)), "right": right, "asked": asked})
            if sizes == self.config.trained:
                low, high = wilson_interval(right, asked)
                scores = {"success": right / asked, "success_low": low, "success_high": high}
        return {**scores, "tests": tests}

    def _close(self) -> None:
        pass

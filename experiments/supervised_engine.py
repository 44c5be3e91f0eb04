"""The engine of supervised experiments: cross-entropy on batches that grow by turns, and a test at many sizes."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.experiments.engine import Engine
from scrubjay.experiments.statistics import wilson_interval
from scrubjay.experiments.supervised import SupervisedConfig

_MAX_GRAD_NORM = 1.0


class SupervisedEngine(Engine):
    """Learns by cross-entropy; the loss of each batch is measured before it is learned from."""

    config: SupervisedConfig

    @abstractmethod
    def _make_model(self) -> nn.Module:
        """Return the model as it is at step 0."""

    @abstractmethod
    def _draw(self, count: int) -> tuple[Any, int]:
        """Return the next batch of `count` things to remember, and how many steps it has."""

    @abstractmethod
    def _answer(self, batch: Any) -> tuple[Float[Tensor, "questions choices"], Int[Tensor, " questions"]]:
        """Return the model's logits for every question of a batch, and the right answers."""

    @abstractmethod
    def _test(self, count: int, span: int) -> tuple[int, int]:
        """Return how many questions of these sizes were answered right, of how many; of the evaluation's seed."""

    def _build(self) -> None:
        self.model = self._make_model()
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
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * (1 - self.step / self.config.planned_steps)
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
            "time/SPS_env": steps / (drawn - began),
            "time/SPS_policy": steps / (forward - drawn),
            "time/SPS_learner": steps / (ended - forward),
        }

    def _get_parts(self) -> dict[str, Any]:
        return {"optimizer": copy.deepcopy(self.optimizer.state_dict()), "turn": self.turn}

    def _set_parts(self, training: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(training["optimizer"])
        self.turn = training["turn"]

    def _evaluate(self) -> dict[str, Any]:
        tests = []
        for sizes in self.config.tests:
            right, asked = self._test(*sizes)
            tests.append({**dict(zip(self.config.axes, sizes, strict=True)), "right": right, "asked": asked})
            if sizes == self.config.trained:
                low, high = wilson_interval(right, asked)
                scores = {"success": right / asked, "success_low": low, "success_high": high}
        return {**scores, "tests": tests}

    def _close(self) -> None:
        pass

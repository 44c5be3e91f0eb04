"""The engine of the Ballet probe: ballets that grow from 2 dancers to all, and a test with ballets never seen."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from scrubjay.experiments.ballet_probe import BalletProbe, BalletProbeConfig, watch
from scrubjay.experiments.engine import Engine
from scrubjay.experiments.seeding import derive_seed
from scrubjay.experiments.statistics import wilson_interval

_MAX_GRAD_NORM = 1.0
_EVAL_ROWS = 64


class ProbeEngine(Engine):
    """Learns by cross-entropy; the loss of each batch is measured before it is learned from."""

    config: BalletProbeConfig
    model: BalletProbe

    def _build(self) -> None:
        self.model = BalletProbe(self.config.memory)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config.learning_rate)
        self.envs = {
            count: self.config.make_envs(self.config.batch_questions // count, count)
            for count in self.config.counts
        }
        self.turn = 0
        # Of one seed, so that the dancers of each ballet come again among more: of three HCAMs all learn 8 dancers
        # so, and two where every number of dancers has ballets of its own.
        for envs in self.envs.values():
            envs.reset(seed=derive_seed(self.config.seed, "sampling"))

    def _learn(self) -> tuple[int, dict[str, float]]:
        began = time.perf_counter()
        envs = self.envs[self.config.counts[self.turn]]
        self.turn = (self.turn + 1) % len(self.envs)
        ballets = watch(envs)
        watched = time.perf_counter()
        logits = self.model(ballets)
        loss = functional.cross_entropy(logits.flatten(0, 1), ballets.answers.flatten())
        forward = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * (1 - self.step / self.config.planned_steps)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRAD_NORM)
        self.optimizer.step()
        ended = time.perf_counter()
        steps = envs.num_envs * (envs.choice_step + 1)
        # The learning curve is of the most dancers; of fewer the same weights tell more.
        most = envs.num_dancers == self.config.num_dancers
        name = "charts/success" if most else "charts/success_of_fewer"
        return steps, {
            "charts/dancers": envs.num_dancers,
            name: (logits.argmax(dim=-1) == ballets.answers).float().mean().item(),
            "losses/cross_entropy": loss.item(),
            "time/SPS_env": steps / (watched - began),
            "time/SPS_policy": steps / (forward - watched),
            "time/SPS_learner": steps / (ended - forward),
        }

    def _get_parts(self) -> dict[str, Any]:
        states = {count: envs.get_state() for count, envs in self.envs.items()}
        return {"optimizer": copy.deepcopy(self.optimizer.state_dict()), "envs": states, "turn": self.turn}

    def _set_parts(self, training: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(training["optimizer"])
        self.turn = training["turn"]
        for count, state in training["envs"].items():
            self.envs[count].set_state(state)

    def _evaluate(self) -> dict[str, Any]:
        tests = []
        for num_dancers, delay in self.config.tests:
            right, asked = accuracy(self.model, self.config, num_dancers, delay)
            tests.append({"num_dancers": num_dancers, "delay": delay, "right": right, "asked": asked})
        trained = next(
            test
            for test in tests
            if (test["num_dancers"], test["delay"]) == (self.config.num_dancers, self.config.delay)
        )
        low, high = wilson_interval(trained["right"], trained["asked"])
        success = trained["right"] / trained["asked"]
        return {"success": success, "success_low": low, "success_high": high, "tests": tests}

    def _close(self) -> None:
        for envs in self.envs.values():
            envs.close()


@torch.no_grad()
def accuracy(model: BalletProbe, config: BalletProbeConfig, num_dancers: int, delay: int) -> tuple[int, int]:
    """Return how many questions were answered right, and of how many, in ballets of the evaluation's seeds."""
    rows = min(_EVAL_ROWS, config.eval_episodes)
    envs = config.make_envs(rows, num_dancers, delay)
    envs.reset(seed=derive_seed(config.seed, "evaluation"))
    right = asked = 0
    for first in range(0, config.eval_episodes, rows):
        ballets = watch(envs)
        answers = model(ballets).argmax(dim=-1)[: config.eval_episodes - first]
        right += int((answers == ballets.answers[: len(answers)]).sum())
        asked += answers.numel()
    return right, asked

"""The engine of the Ballet probe: ballets that grow from 2 dancers to all, and a test with ballets never seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scrubjay.experiments.ballet_probe import BalletProbe, BalletProbeConfig, Ballets, watch
from scrubjay.experiments.seeding import derive_seed
from scrubjay.experiments.supervised_engine import SupervisedEngine

_EVAL_ROWS = 64


class ProbeEngine(SupervisedEngine):
    """Watches a batch of ballets for every update; there is a batch of environments per number of dancers."""

    config: BalletProbeConfig
    model: BalletProbe

    def _build(self) -> None:
        super()._build()
        self.envs = {
            count: self.config.make_envs(self.config.batch_questions // count, count)
            for count in self.config.counts
        }
        # Of one seed, so that the dancers of each ballet come again among more: of three HCAMs all learn 8 dancers
        # so, and two where every number of dancers has ballets of its own.
        for envs in self.envs.values():
            envs.reset(seed=derive_seed(self.config.seed, "sampling"))

    def _make_model(self) -> BalletProbe:
        return BalletProbe(self.config.memory)

    def _draw(self, count: int) -> tuple[Ballets, int]:
        envs = self.envs[count]
        return watch(envs), envs.num_envs * (envs.choice_step + 1)

    def _answer(self, batch: Ballets) -> tuple[Tensor, Tensor]:
        return self.model(batch).flatten(0, 1), batch.answers.flatten()

    def _test(self, count: int, span: int) -> tuple[int, int]:
        return accuracy(self.model, self.config, count, span)

    def _get_parts(self) -> dict[str, Any]:
        return super()._get_parts() | {"envs": {count: envs.get_state() for count, envs in self.envs.items()}}

    def _set_parts(self, training: dict[str, Any]) -> None:
        super()._set_parts(training)
        for count, state in training["envs"].items():
            self.envs[count].set_state(state)

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

"""Ballet probe: after a whole ballet, predict for each dance which dancer danced it.

The probe is supervised. It tests the memory alone, without navigation, exploration and credit assignment.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.agents.rl.rollout import ActorInput, Choice, VectorEnvs, rollout
from scrubjay.envs.ballet.env import COLOUR_OFFSET, MOVE_OFFSET, SHAPE_OFFSET, SLOT_SIZE, SLOTS, BalletVector
from scrubjay.envs.ballet.world import INSTRUCTIONS, NO_MOVE
from scrubjay.experiments.cli.failures import check_at_least
from scrubjay.experiments.resources import MEMORY_LIMIT
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.supervised import SupervisedConfig, SupervisedEngine
from scrubjay.memory import MemoryConfig, make_config, name_of
from scrubjay.memory.sketch import nbytes, sketch, state_nbytes

_SYMBOLS = SLOTS * SLOT_SIZE
_EVAL_ENVS = 64
_DANCE_STEPS = 32  # at most
_PER_STEP = 32  # numbers saved per step for the backward pass, per unit of the memory's width
_PER_TEST = 2**16


@dataclass(frozen=True)
class BalletProbeConfig(SupervisedConfig):
    """Config of the supervised Ballet probe: after a whole ballet, name the dancer of each dance."""

    kind: ClassVar[str] = "ballet-probe"
    axes: ClassVar[tuple[str, str]] = ("num_dancers", "delay")

    recipe: str = "ballet-probe"
    """Task name in run directories and plots."""
    memory: MemoryConfig = field(default_factory=lambda: make_config("gru", dim=128))
    """Memory config. The memory must distinguish 8 moves, 64 pairs of moves and the appearance of each dancer
    by their encodings. At width 64 the encodings are too similar: most HCAMs still confuse dances at the end
    of training."""
    learning_rate: float = 1e-3
    """Initial learning rate of Adam. The rate decays linearly to 0 at the original `total_steps`. An
    extension of the run keeps the rate of the last update before it."""
    num_dancers: int = 2
    """Maximum number of dancers in training; batches cycle through 2, 4, ... up to this number."""
    delay: int = 16
    """Steps between dances in training."""
    batch_questions: int = 64
    """Questions per gradient step; a ballet with n dancers has n questions."""
    eval_episodes: int = 512
    """Number of episodes for each accuracy in result.json. Their seeds are not used in training."""
    eval_dancers: tuple[int, ...] = (2, 4, 8)
    """Numbers of dancers in the test. The test always includes `num_dancers` as well."""
    eval_delays: tuple[int, ...] = (16, 24, 32, 48)
    """Numbers of steps between dances in the test. The test always includes `delay` as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "num_dancers", "eval_episodes")
        if self.batch_questions < self.num_dancers:
            raise ValueError(
                f"batch_questions={self.batch_questions}: must be at least "
                f"num_dancers={self.num_dancers}, since a ballet has one question per dancer"
            )

    @property
    def train_sizes(self) -> tuple[int, int]:
        """Training sizes: the maximum number of dancers, and the number of steps between dances."""
        return self.num_dancers, self.delay

    @property
    def eval_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers of dancers, and numbers of steps between dances, in the test."""
        return self.eval_dancers, self.eval_delays

    @property
    def axis_labels(self) -> tuple[str, str]:
        """Axis labels in plots: for the number of dancers, and for the delay."""
        return "dancers", "steps between dances"

    def chance(self, count: int) -> float:
        """Return the accuracy of a random guess among `count` dancers."""
        return 1 / count

    def make_envs(self, num_envs: int, num_dancers: int, delay: int) -> BalletVector:
        """Return a vector environment of ballets."""
        return BalletVector(num_envs, num_dancers, delay, "symbolic")

    def rough_bytes(self) -> dict[str, int]:
        """Return a dict from settings, such as `delay=64`, to estimated bytes in training and test."""
        model = sketch(self.make_model, MEMORY_LIMIT)
        eval_envs = min(_EVAL_ENVS, self.eval_episodes)
        ballets = max(self.batch_questions, eval_envs)
        dancers, delay = max(self.num_dancers, *self.eval_dancers), max(self.delay, *self.eval_delays)
        eval_questions = eval_envs * dancers
        steps = dancers * (delay + _DANCE_STEPS)
        tests = (len(self.eval_dancers) + 1) * (len(self.eval_delays) + 1)
        name, batch = f"memory={name_of(self.memory)}", f"batch_questions={self.batch_questions:,}"
        numbers = ballets * steps * (_SYMBOLS + _PER_STEP * self.memory.dim)
        return {
            name: 4 * nbytes(model.state_dict()),
            f"{name} of {batch}, {eval_questions:,} tested": state_nbytes(
                model.memory, max(self.batch_questions, eval_questions)
            ),
            f"{batch}, delay={delay:,}": 4 * numbers,
            f"{tests:,} tests": tests * _PER_TEST,
        }

    def make_model(self) -> BalletProbe:
        """Return a new, untrained probe."""
        return BalletProbe(self.memory)

    @torch.no_grad()
    def count_correct(self, model: Any, count: int, span: int) -> tuple[int, int]:
        """Return the numbers of correct answers and of questions, for `count` dancers and delay `span`.

        The ballets have the evaluation seeds.
        """
        num_envs = min(_EVAL_ENVS, self.eval_episodes)
        envs = self.make_envs(num_envs, count, span)
        envs.reset(seed=derive_seed(self.seed, "evaluation"))
        correct = total = 0
        for first in range(0, self.eval_episodes, num_envs):
            ballets = watch(envs)
            answers = model(ballets).argmax(dim=-1)[: self.eval_episodes - first]
            correct += int((answers == ballets.answers[: len(answers)]).sum())
            total += answers.numel()
        return correct, total

    def check_parts(self) -> None:
        """Build the model, and one environment for each tested size. Invalid settings raise errors."""
        for num_dancers, delay in self.tests:
            self.make_envs(1, num_dancers, delay)
        self.make_model()


class Ballets(NamedTuple):
    """Batch of ballets: all observations before the question, and one question per dance."""

    observations: Float[Tensor, "batch time symbols"]
    questions: Float[Tensor, "batch dances symbols"]
    """Observation at the question step, repeated once per dance with the instruction for this dance."""
    answers: Int[Tensor, "batch dances"]
    """Correct dancer of each dance: the index of the dancer's place in the observation."""


class _Watcher:
    """Actor that stands still."""

    def __init__(self, num_envs: int) -> None:
        self._choice = Choice(np.zeros(num_envs, dtype=np.int64))

    def act(self, inputs: ActorInput) -> Choice:
        return self._choice


def watch(envs: BalletVector) -> Ballets:
    """Run one new ballet in every environment of `envs`; return its observations, questions and answers."""
    rows = VectorEnvs(envs)
    inputs = rows.reset()
    turns = itertools.islice(rollout(rows, _Watcher(envs.num_envs), inputs), envs.choice_step)
    steps = [inputs.observations[""], *(turn.result.following.observations[""] for turn in turns)]
    questions = np.repeat(steps.pop()[:, None], envs.num_dancers, axis=1)
    questions[:, :, _SYMBOLS:] = np.eye(len(INSTRUCTIONS), dtype=np.float32)[envs.dance + 1]
    return Ballets(
        torch.from_numpy(np.stack(steps, axis=1)),
        torch.from_numpy(questions),
        torch.from_numpy(envs.slot.copy()),
    )


class BalletProbe(nn.Module):
    """Model that encodes dancers with shared weights, and answers with a score for each dancer slot.

    Dances differ by the order of moves. The encoding of a dancer therefore includes its last two moves, as in
    a stack of two frames. The memory's input is the sum of the encodings of all dancers that move; dancers
    that stand still would only hide the moving one. A slot is the place of a dancer in the observation. No
    weight depends on a dancer's slot or on the number of dancers. The probe can therefore be tested with
    other numbers of dancers than in training.
    """

    def __init__(self, memory: MemoryConfig) -> None:
        super().__init__()
        dim = memory.dim
        self.motion = nn.Linear(NO_MOVE + NO_MOVE**2, dim)
        self.looks = nn.Linear(SLOT_SIZE, dim)
        self.instruction = nn.Linear(len(INSTRUCTIONS), dim)
        self.memory = memory.build()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.pointer = nn.Linear(SLOT_SIZE, dim)

    def forward(self, ballets: Ballets) -> Float[Tensor, "batch dances slots"]:
        """Return one logit per dancer slot for every question; the logit of an empty slot is -inf.

        Each question uses its own copy of the memory state, so that no question influences another.
        """
        observations, questions, _ = ballets
        start = torch.zeros(observations.shape[:2], dtype=torch.bool)
        start[:, 0] = True
        _, state = self.memory(
            self._encode(observations), self.memory.initial_state(len(observations)), start
        )
        dances = questions.shape[1]
        copies = {name: value.repeat_interleave(dances, dim=0) for name, value in state.items()}
        readout, _ = self.memory.step(self._encode(questions).flatten(0, 1), copies)
        query = self.query(self.norm(readout)).unflatten(0, (-1, dances))
        slots = _slots(questions)
        is_dancer = slots[..., SHAPE_OFFSET:COLOUR_OFFSET].any(dim=-1)
        logits = torch.einsum("bqd,bqsd->bqs", query, self.pointer(slots)) / math.sqrt(query.shape[-1])
        return logits.masked_fill(~is_dancer, -math.inf)

    def _encode(self, symbols: Float[Tensor, "batch time symbols"]) -> Float[Tensor, "batch time dim"]:
        slots = _slots(symbols)
        moves = slots[..., MOVE_OFFSET : MOVE_OFFSET + NO_MOVE]
        before = functional.pad(moves[:, :-1], (0, 0, 0, 0, 1, 0))
        pairs = (moves.unsqueeze(-1) * before.unsqueeze(-2)).flatten(-2)
        dancers = self.looks(slots) + self.motion(torch.cat([moves, pairs], dim=-1))
        dancers = dancers * moves.any(dim=-1, keepdim=True)
        return dancers.sum(dim=-2) + self.instruction(symbols[..., _SYMBOLS:])


def _slots(symbols: Float[Tensor, "*batch symbols"]) -> Float[Tensor, "*batch slots slot"]:
    """Return the part of `symbols` that describes dancers, as one feature vector per dancer slot."""
    return symbols[..., :_SYMBOLS].unflatten(-1, (SLOTS, SLOT_SIZE))


class ProbeEngine(SupervisedEngine):
    """Engine of the Ballet probe; it has one vector environment per number of dancers."""

    config: BalletProbeConfig
    model: BalletProbe

    def _build(self) -> None:
        super()._build()
        self.envs = {
            count: self.config.make_envs(self.config.batch_questions // count, count, self.config.delay)
            for count in self.config.counts
        }
        # Use one seed, so that the dancers of each ballet recur in the ballets with more dancers.
        for envs in self.envs.values():
            envs.reset(seed=derive_seed(self.config.seed, "sampling"))

    def _sample_batch(self, count: int) -> tuple[Ballets, int]:
        envs = self.envs[count]
        return watch(envs), envs.num_envs * (envs.choice_step + 1)

    def _compute_logits(self, batch: Ballets) -> tuple[Tensor, Tensor]:
        return self.model(batch).flatten(0, 1), batch.answers.flatten()

    def _get_parts(self) -> dict[str, Any]:
        return super()._get_parts() | {"envs": {count: envs.get_state() for count, envs in self.envs.items()}}

    def _set_parts(self, training: dict[str, Any]) -> None:
        super()._set_parts(training)
        for count, state in training["envs"].items():
            self.envs[count].set_state(state)

    def _close(self) -> None:
        for envs in self.envs.values():
            envs.close()

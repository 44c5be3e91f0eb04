"""The Ballet probe: watch a whole ballet, then say, for each dance, which dancer danced it.

Supervised, so that it tests a memory alone, without walking, exploration and credit assignment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.envs.ballet.env import COLOUR_AT, MOVE_AT, SHAPE_AT, SLOT_SIZE, SLOTS, BalletVector
from scrubjay.envs.ballet.world import INSTRUCTIONS, NO_MOVE
from scrubjay.experiments.kinds.supervised import SupervisedConfig, SupervisedEngine
from scrubjay.experiments.runs.room import ROOM
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.memory import MemoryConfig, make_config, name_of
from scrubjay.memory.sketch import nbytes, sketch, state_nbytes

_SYMBOLS = SLOTS * SLOT_SIZE
_EVAL_ROWS = 64
_DANCE_STEPS = 32  # at most
_PER_STEP = 32  # numbers that a memory keeps of a step for its gradient, by its width
_PER_TEST = 2**16


@dataclass(frozen=True)
class BalletProbeConfig(SupervisedConfig):
    """A memory learns, from whole ballets and by supervision, who danced what."""

    kind: ClassVar[str] = "ballet-probe"
    axes: ClassVar[tuple[str, str]] = ("num_dancers", "delay")

    recipe: str = "ballet-probe"
    """Name of the task in run directories and plots."""
    memory: MemoryConfig = field(default_factory=lambda: make_config("gru", dim=128))
    """What remembers. There are 72 moves and pairs of moves to tell apart, and the looks of dancers: held in
    64 numbers, they are so much alike that most HCAMs mix dances up for as long as they are trained."""
    learning_rate: float = 1e-3
    """Adam's step size at the start; falls linearly, to zero at the end of the first plan."""
    num_dancers: int = 2
    """The most dancers in training; batches have 2, 4, ... up to this many by turns, see `counts`."""
    delay: int = 16
    """Steps between dances in training."""
    batch_questions: int = 64
    """Questions per gradient step; a ballet of n dancers asks n."""
    eval_episodes: int = 512
    """Ballets, of seeds not trained on, behind every accuracy in result.json."""
    eval_dancers: tuple[int, ...] = (2, 4, 8)
    """Numbers of dancers in the test, the trained one aside."""
    eval_delays: tuple[int, ...] = (16, 24, 32, 48)
    """Delays in the test, the trained one aside."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_dancers", "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.batch_questions < self.num_dancers:
            raise ValueError(
                f"batch_questions={self.batch_questions}: a single ballet asks num_dancers={self.num_dancers}"
            )

    @property
    def trained(self) -> tuple[int, int]:
        """Dancers, at most, and delay."""
        return self.num_dancers, self.delay

    @property
    def tested(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers of dancers, and delays."""
        return self.eval_dancers, self.eval_delays

    @property
    def axis_labels(self) -> tuple[str, str]:
        """The two sizes in words."""
        return "dancers", "steps between dances"

    def chance(self, count: int) -> float:
        """Guess among the dancers in view."""
        return 1 / count

    def make_envs(
        self, num_envs: int, num_dancers: int | None = None, delay: int | None = None
    ) -> BalletVector:
        """Return a batch of ballets, of the training's dancers and delay unless told otherwise."""
        count = self.num_dancers if num_dancers is None else num_dancers
        return BalletVector(num_envs, count, self.delay if delay is None else delay, "symbolic")

    def rough_bytes(self) -> dict[str, int]:
        """Return about how many bytes training and test take, by what takes them."""
        model = sketch(self.make_model, ROOM)
        tested = min(_EVAL_ROWS, self.eval_episodes)
        rows = max(self.batch_questions, tested)
        dancers, delay = max(self.num_dancers, *self.eval_dancers), max(self.delay, *self.eval_delays)
        asked = tested * dancers
        steps = dancers * (delay + _DANCE_STEPS)
        tests = (len(self.eval_dancers) + 1) * (len(self.eval_delays) + 1)
        name, batch = f"memory={name_of(self.memory)}", f"batch_questions={self.batch_questions:,}"
        numbers = rows * steps * (_SYMBOLS + _PER_STEP * self.memory.dim)
        return {
            name: 4 * nbytes(model.state_dict()),
            f"{name} of {batch}, {asked:,} tested": state_nbytes(
                model.memory, max(self.batch_questions, asked)
            ),
            f"{batch}, delay={delay:,}": 4 * numbers,
            f"{tests:,} tests": tests * _PER_TEST,
        }

    def make_model(self) -> BalletProbe:
        """Return a new probe."""
        return BalletProbe(self.memory)

    def answered(self, model: Any, count: int, span: int) -> tuple[int, int]:
        """Return how many questions a model answers right, of how many, in the test of these sizes."""
        return accuracy(model, self, count, span)

    def check_parts(self) -> None:
        """Make ballets of all sizes in the test, and the model."""
        for num_dancers, delay in self.tests:
            self.make_envs(1, num_dancers, delay)
        self.make_model()


class Ballets(NamedTuple):
    """Ballets from their first step to the question, and one question for every dance in them."""

    watched: Float[Tensor, "batch time symbols"]
    questions: Float[Tensor, "batch dances symbols"]
    """The step at which the agent is asked, once per dance; only the instruction differs."""
    answers: Int[Tensor, "batch dances"]
    """Slots of the dancers asked for."""


def watch(envs: BalletVector) -> Ballets:
    """Watch one new ballet in every row of `envs`."""
    idle = np.zeros(envs.num_envs, dtype=np.int64)
    steps = [np.asarray(envs.reset()[0])]
    for _ in range(envs.choice_step):
        steps.append(np.asarray(envs.step(idle)[0]))
    questions = np.repeat(steps.pop()[:, None], envs.num_dancers, axis=1)
    questions[:, :, _SYMBOLS:] = np.eye(len(INSTRUCTIONS), dtype=np.float32)[envs.dance + 1]
    return Ballets(
        torch.from_numpy(np.stack(steps, axis=1)),
        torch.from_numpy(questions),
        torch.from_numpy(envs.slot.copy()),
    )


class BalletProbe(nn.Module):
    """Who moves is read by shared weights, remembered, and pointed at by its place and looks.

    A dancer is seen with its last two moves, as with a stack of two frames: dances differ by the order of
    moves. Dancers that stand still tell the memory nothing: in their crowd the one that moves would be lost.
    Nothing depends on a dancer's slot or on how many there are, so it can be tested with other numbers of
    dancers than it was trained with.
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
        """Return a logit per slot for every question, -inf for empty slots.

        Each question is asked of a copy of what was remembered, so that none can help with another.
        """
        watched, questions, _ = ballets
        start = torch.zeros(watched.shape[:2], dtype=torch.bool)
        start[:, 0] = True
        _, state = self.memory(self._encode(watched), self.memory.initial_state(len(watched)), start)
        dances = questions.shape[1]
        copies = {name: value.repeat_interleave(dances, dim=0) for name, value in state.items()}
        remembered, _ = self.memory.step(self._encode(questions).flatten(0, 1), copies)
        query = self.query(self.norm(remembered)).unflatten(0, (-1, dances))
        slots = _slots(questions)
        occupied = slots[..., SHAPE_AT:COLOUR_AT].any(dim=-1)
        logits = torch.einsum("bqd,bqsd->bqs", query, self.pointer(slots)) / math.sqrt(query.shape[-1])
        return logits.masked_fill(~occupied, -math.inf)

    def _encode(self, symbols: Float[Tensor, "batch time symbols"]) -> Float[Tensor, "batch time dim"]:
        slots = _slots(symbols)
        moves = slots[..., MOVE_AT : MOVE_AT + NO_MOVE]
        before = functional.pad(moves[:, :-1], (0, 0, 0, 0, 1, 0))
        pairs = (moves.unsqueeze(-1) * before.unsqueeze(-2)).flatten(-2)
        dancers = self.looks(slots) + self.motion(torch.cat([moves, pairs], dim=-1))
        dancers = dancers * moves.any(dim=-1, keepdim=True)
        return dancers.sum(dim=-2) + self.instruction(symbols[..., _SYMBOLS:])


def _slots(symbols: Float[Tensor, "*batch symbols"]) -> Float[Tensor, "*batch slots slot"]:
    """Return the numbers of each dancer."""
    return symbols[..., :_SYMBOLS].unflatten(-1, (SLOTS, SLOT_SIZE))


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
        # Of one seed, so that the dancers of each ballet come again among more.
        for envs in self.envs.values():
            envs.reset(seed=derive_seed(self.config.seed, "sampling"))

    def _draw(self, count: int) -> tuple[Ballets, int]:
        envs = self.envs[count]
        return watch(envs), envs.num_envs * (envs.choice_step + 1)

    def _answer(self, batch: Ballets) -> tuple[Tensor, Tensor]:
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


@torch.no_grad()
def accuracy(model: BalletProbe, config: BalletProbeConfig, num_dancers: int, delay: int) -> tuple[int, int]:
    """Return how many questions were answered right, of how many, in ballets of the evaluation's seeds."""
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

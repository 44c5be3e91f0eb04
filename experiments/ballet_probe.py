"""The Ballet probe: watch a whole ballet, then say, for each dance, which dancer danced it.

Supervised, so that it tests a memory alone, without walking, exploration and credit assignment.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.envs.ballet import COLOUR_AT, MOVE_AT, SHAPE_AT, SLOT_SIZE, SLOTS, BalletVector
from scrubjay.envs.ballet_world import INSTRUCTIONS, NO_MOVE
from scrubjay.memory import MemoryConfig, make_config, name_of

_SYMBOLS = SLOTS * SLOT_SIZE


@dataclass(frozen=True)
class BalletProbeConfig:
    """A memory learns, from whole ballets and by supervision, who danced what."""

    kind: ClassVar[str] = "ballet-probe"

    recipe: str = "ballet-probe"
    """Name of the task in run directories and plots."""
    num_dancers: int = 2
    """Dancers in training; it begins with 2 and doubles them, see `warmup`."""
    delay: int = 16
    """Steps between dances in training."""
    memory: MemoryConfig = field(default_factory=lambda: make_config("gru", dim=64))
    """What remembers."""
    learning_rate: float = 2e-3
    """Adam's step size at the start; falls linearly to zero."""
    batch_questions: int = 64
    """Questions per gradient step; a ballet of n dancers asks n."""
    warmup: float = 0.15
    """Share of the training spent on 2 dancers before there are 4, and so on by doubling up to `num_dancers`.

    Among 8 dancers chance is so low, and a wrong chunk so likely, that learning would take long to begin.
    """
    total_steps: int = 3_000_000
    """Environment steps of the whole run, over all ballets; the last batch is finished."""
    seed: int = 0
    """Source of all randomness."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints."""
    eval_episodes: int = 512
    """Ballets, of seeds not trained on, behind every accuracy in result.json."""
    eval_dancers: tuple[int, ...] = (2, 4, 8)
    """Numbers of dancers in the test, the trained one aside."""
    eval_delays: tuple[int, ...] = (16, 24, 32, 48)
    """Delays in the test, the trained one aside."""

    def __post_init__(self) -> None:
        for name in ("num_dancers", "total_steps", "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("seed", "checkpoint_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}: must be positive")
        if self.batch_questions < self.num_dancers:
            raise ValueError(
                f"batch_questions={self.batch_questions}: a single ballet asks num_dancers={self.num_dancers}"
            )
        if not 0 <= self.warmup * len(self.stages[1:]) < 1:
            raise ValueError(
                f"warmup={self.warmup}: {len(self.stages) - 1} times that must leave training for the last stage"
            )

    @property
    def label(self) -> str:
        """The memory's registered name."""
        return name_of(self.memory)

    @property
    def planned_steps(self) -> int:
        """`total_steps`."""
        return self.total_steps

    @property
    def stages(self) -> list[int]:
        """Numbers of dancers in training, in order: 2, 4, ... and at last `num_dancers`."""
        doubled = [2**power for power in range(1, self.num_dancers.bit_length())]
        return [count for count in doubled if count < self.num_dancers] + [self.num_dancers]

    def dancers_at(self, step: int) -> int:
        """Return the number of dancers in training after `step` steps."""
        stage = int(step / (self.warmup * self.total_steps)) if self.warmup > 0 else len(self.stages)
        return self.stages[min(stage, len(self.stages) - 1)]

    @property
    def success_without_memory(self) -> float:
        """Guess among the dancers in view."""
        return 1 / self.num_dancers

    @property
    def tests(self) -> list[tuple[int, int]]:
        """All pairs of dancers and delay in the test."""
        dancers = sorted({self.num_dancers, *self.eval_dancers})
        delays = sorted({self.delay, *self.eval_delays})
        return [(count, delay) for count in dancers for delay in delays]

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return the same experiment with another memory."""
        return dataclasses.replace(self, memory=memory)

    def make_envs(
        self, num_envs: int, num_dancers: int | None = None, delay: int | None = None
    ) -> BalletVector:
        """Return a batch of ballets, of the training's dancers and delay unless told otherwise."""
        count, wait = num_dancers or self.num_dancers, delay or self.delay
        return BalletVector(num_envs, count, wait, "symbolic")

    def check(self) -> None:
        """Build the parts once. Raises ValueError or TypeError naming what does not fit."""
        for num_dancers, delay in self.tests:
            self.make_envs(1, num_dancers, delay)
        BalletProbe(self.memory)

    def run(self, run_dir: Path, progress: bool = False) -> None:
        """Train in this process, going on from the newest checkpoint in `run_dir` if there is one."""
        from scrubjay.experiments.engine import train_with  # the engines themselves read configs
        from scrubjay.experiments.probe_engine import ProbeEngine

        train_with(ProbeEngine, self, run_dir, progress)


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

    A dancer is seen with its last two moves, as with a stack of two frames: dances differ by the order of moves.
    Dancers that stand still tell the memory nothing: in their crowd the one that moves would be lost. Nothing
    depends on a dancer's slot or on how many there are, so it can be tested with other numbers of dancers than it
    was trained with.
    """

    def __init__(self, memory: MemoryConfig) -> None:
        super().__init__()
        dim = memory.dim
        self.motion = nn.Sequential(nn.Linear(2 * NO_MOVE, dim), nn.SiLU(), nn.Linear(dim, dim))
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
        dancers = self.looks(slots) + self.motion(torch.cat([moves, before], dim=-1))
        dancers = dancers * moves.any(dim=-1, keepdim=True)
        return dancers.sum(dim=-2) + self.instruction(symbols[..., _SYMBOLS:])


def _slots(symbols: Float[Tensor, "*batch symbols"]) -> Float[Tensor, "*batch slots slot"]:
    """Return the numbers of each dancer."""
    return symbols[..., :_SYMBOLS].unflatten(-1, (SLOTS, SLOT_SIZE))

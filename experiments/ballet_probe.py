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
from scrubjay.experiments.cluster import RayOptions
from scrubjay.experiments.metrics import OnUpdate
from scrubjay.memory import MemoryConfig, make_config, name_of

_SYMBOLS = SLOTS * SLOT_SIZE


@dataclass(frozen=True)
class BalletProbeConfig:
    """A memory learns, from whole ballets and by supervision, who danced what."""

    kind: ClassVar[str] = "ballet-probe"

    recipe: str = "ballet-probe"
    """Name of the task in run directories and plots."""
    num_dancers: int = 2
    """The most dancers in training; batches have 2, 4, ... up to this many by turns, see `counts`."""
    delay: int = 16
    """Steps between dances in training."""
    memory: MemoryConfig = field(default_factory=lambda: make_config("gru", dim=64))
    """What remembers."""
    learning_rate: float = 2e-3
    """Adam's step size at the start; falls linearly to zero."""
    batch_questions: int = 64
    """Questions per gradient step; a ballet of n dancers asks n."""
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

    @property
    def label(self) -> str:
        """The memory's registered name."""
        return name_of(self.memory)

    @property
    def planned_steps(self) -> int:
        """`total_steps`."""
        return self.total_steps

    @property
    def counts(self) -> list[int]:
        """Numbers of dancers in the training's batches, by turns: 2, 4, ... and `num_dancers`.

        Of 8 dancers alone learning hardly begins, so likely is a wrong chunk and so low chance; and what is
        learned of 2 alone may be of no use for more.
        """
        doubled = [2**power for power in range(1, self.num_dancers.bit_length())]
        return [count for count in doubled if count < self.num_dancers] + [self.num_dancers]

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
        count = self.num_dancers if num_dancers is None else num_dancers
        return BalletVector(num_envs, count, self.delay if delay is None else delay, "symbolic")

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the parts once. Raises ValueError or TypeError naming what does not fit, or if on Ray."""
        if ray is not None:
            raise ValueError(f"{self.recipe} is trained in one process; leave --engine ray away")
        for num_dancers, delay in self.tests:
            self.make_envs(1, num_dancers, delay)
        BalletProbe(self.memory)

    def run(
        self,
        run_dir: Path,
        progress: bool = False,
        ray: RayOptions | None = None,
        on_update: OnUpdate | None = None,
    ) -> None:
        """Train in this process, going on from the newest checkpoint in `run_dir` if there is one."""
        self.check(ray)
        from scrubjay.experiments.engine import train_with  # the engines themselves read configs
        from scrubjay.experiments.probe_engine import ProbeEngine

        train_with(ProbeEngine, self, run_dir, progress, on_update)


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

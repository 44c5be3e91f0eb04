"""Tasks of the scoreboard: environments, their packages, and published scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scrubjay.experiments.tasks.environments import EnvConfig, KwargValue

FRAMES = 1_000_000
"""Environment steps of training."""
_ENVIRONMENTS = "scrubjay.experiments.scoreboard.environments"


@dataclass(frozen=True)
class PaperScore:
    """Score of another implementation, from a paper."""

    contender: str
    """Contender with the same kind of memory."""
    score: float
    frames: int
    """Environment steps of training."""
    source: str


@dataclass(frozen=True)
class Task:
    """Environment of the scoreboard."""

    name: str
    """Name in commands, rows and tables."""
    env_id: str
    """Id of `EnvConfig`: a gymnasium id, or a function of `environments` that adds wrappers."""
    episode_steps: int
    """Largest number of steps of an episode; the attention memories see at least so many."""
    package: str = ""
    """Package to install with pip, besides the extra `bench`; empty if gymnasium alone has the task."""
    kwargs: Mapping[str, KwargValue] = field(default_factory=dict)
    """Settings of the environment."""
    paper_scores: tuple[PaperScore, ...] = ()

    def env(self, num_envs: int) -> EnvConfig:
        """Return the config of the environment."""
        return EnvConfig(self.env_id, dict(self.kwargs), num_envs)


def popgym_task(name: str, level: str, episode_steps: int, *scores: PaperScore) -> Task:
    """Return an easy or other task of POPGym, such as `RepeatFirstEasy`."""
    return Task(name, f"popgym:popgym-{level}-v0", episode_steps, "popgym>=1.0.7", paper_scores=scores)


def minigrid_task(name: str, env_id: str, episode_steps: int) -> Task:
    """Return a task of MiniGrid with flat one-hot observations."""
    return Task(name, f"{_ENVIRONMENTS}:minigrid", episode_steps, "minigrid>=3", {"name": env_id})


def positions_task(name: str, env_id: str, episode_steps: int, package: str = "") -> Task:
    """Return a task of gymnasium without velocities in its observations."""
    return Task(name, f"{_ENVIRONMENTS}:hide_velocities", episode_steps, package, {"name": env_id})


def bsuite_task(name: str, kind: str, episode_steps: int, **settings: KwargValue) -> Task:
    """Return a task of bsuite."""
    return Task(name, f"{_ENVIRONMENTS}:bsuite", episode_steps, "bsuite>=0.3.6", {"name": kind, **settings})


MUJOCO = "gymnasium[mujoco]"


def _popgym_gru(score: float) -> PaperScore:
    """Return the score of the GRU in the paper of POPGym: the best mean return during training."""
    source = "Morad et al. 2023, arXiv 2303.01859, appendix B, table 3: RLlib's PPO, three trials"
    return PaperScore("gru", score, 15_000_000, source)


SCOREBOARD = (
    popgym_task("repeat-first", "RepeatFirstEasy", 51, _popgym_gru(1.0)),
    popgym_task("higher-lower", "HigherLowerEasy", 51, _popgym_gru(0.529)),
    # The paper calls it NoisyStatelessCartPole.
    popgym_task("noisy-cartpole", "NoisyPositionOnlyCartPoleEasy", 200, _popgym_gru(0.995)),
    popgym_task("position-pendulum", "PositionOnlyPendulumEasy", 200),
    minigrid_task("memory-s7", "MiniGrid-MemoryS7-v0", 245),
    minigrid_task("memory-s9", "MiniGrid-MemoryS9-v0", 405),
    positions_task("pendulum-positions", "Pendulum-v1", 200),
    positions_task("half-cheetah-positions", "HalfCheetah-v5", 1000, MUJOCO),
)
"""Tasks of the scoreboard."""

MEMORY_S11 = minigrid_task("memory-s11", "MiniGrid-MemoryS11-v0", 605)
"""Longer corridor of the Memory tasks, outside the scoreboard."""

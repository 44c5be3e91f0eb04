"""Observability gap and memory bias, as defined by POPGym Arcade (Wang et al. 2025, arXiv 2503.01450).

The observability gap is the return with full observations minus the return with partial observations. The
memory bias is the return of a recurrent policy minus the return of a memoryless policy, both with full
observations.
"""

from __future__ import annotations

from typing import NamedTuple

from gymnasium import Space

from scrubjay.experiments.evaluation.policy import EpisodeScores
from scrubjay.experiments.experiment_types.reinforcement import TrainConfig
from scrubjay.experiments.runs.statistics import difference_interval
from scrubjay.memory import name_of

_MEMORYLESS = "none"


class Difference(NamedTuple):
    """Difference of two mean returns over episodes, with its 95 % interval."""

    mean: float
    low: float
    high: float


def observability_gap(full: EpisodeScores, partial: EpisodeScores) -> Difference:
    """Return the mean return of `full` minus the mean return of `partial`.

    Raises ValueError if one of them has fewer than 2 episodes.
    """
    return Difference(*difference_interval(full.returns, partial.returns))


def memory_bias(recurrent: EpisodeScores, memoryless: EpisodeScores) -> Difference:
    """Return the recurrent policy's mean return minus the memoryless policy's; negative if memory hurts.

    Both policies must have full observations. Raises ValueError if one has fewer than 2 episodes.
    """
    return Difference(*difference_interval(recurrent.returns, memoryless.returns))


def check_gap(full: TrainConfig, partial: TrainConfig, spaces: tuple[Space, Space]) -> None:
    """Raise ValueError unless two runs have different observations, but equal memories and action spaces.

    `spaces` are the two action spaces.
    """
    if full.env == partial.env:
        raise ValueError(
            f"both runs have the same observations of {full.env.id}; compare a run with full observations "
            "to one with partial observations"
        )
    names = [name_of(config.policy.memory) for config in (full, partial)]
    if names[0] != names[1]:
        raise ValueError(
            f"the memories differ: {names[0]} and {names[1]}; train both runs with the same memory"
        )
    if spaces[0] != spaces[1]:
        raise ValueError(
            f"{full.env.id} and {partial.env.id} are different tasks: their action spaces are {spaces[0]} "
            f"and {spaces[1]}"
        )


def check_bias(recurrent: TrainConfig, memoryless: TrainConfig) -> None:
    """Raise ValueError unless two runs share a task and only the second one is memoryless."""
    for config, name in ((recurrent, "the run"), (memoryless, "the memoryless run")):
        memory = name_of(config.policy.memory)
        if (memory == _MEMORYLESS) != (config is memoryless):
            raise ValueError(
                f"{name} has the memory {memory!r}; the memoryless run must have the memory {_MEMORYLESS!r}, "
                "and the other run any other memory"
            )
    tasks = [(config.env.id, config.env.kwargs) for config in (recurrent, memoryless)]
    if tasks[0] != tasks[1]:
        raise ValueError(
            f"the runs are of different tasks: {tasks[0][0]} {tasks[0][1]} and {tasks[1][0]} {tasks[1][1]}; "
            "compare two runs of the same task"
        )

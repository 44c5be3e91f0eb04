"""What not seeing all costs a policy, and what a memory costs one that sees all, as two numbers.

POPGym Arcade (Wang et al. 2025, arXiv 2503.01450): the observability gap is the return with full observation
minus that with partial; the memory bias is the return of a recurrent policy minus that of a memoryless one,
where nothing is hidden.
"""

from __future__ import annotations

from typing import NamedTuple

from gymnasium import Space

from scrubjay.experiments.evaluation.policy import EpisodeScores
from scrubjay.experiments.kinds.reinforcement import AgentConfig
from scrubjay.experiments.runs.statistics import difference_interval
from scrubjay.memory import name_of

_MEMORYLESS = "none"


class Difference(NamedTuple):
    """Of two mean returns, over episodes, with its 95 % interval."""

    mean: float
    low: float
    high: float


def observability_gap(full: EpisodeScores, partial: EpisodeScores) -> Difference:
    """Return how much more is reached by who sees all. Raises ValueError on fewer than 2 episodes."""
    return Difference(*difference_interval(full.returns, partial.returns))


def memory_bias(recurrent: EpisodeScores, memoryless: EpisodeScores) -> Difference:
    """Return how much more is reached with a memory, where nothing is hidden; below 0 it is a burden.

    Raises ValueError on fewer than 2 episodes.
    """
    return Difference(*difference_interval(recurrent.returns, memoryless.returns))


def check_gap(full: AgentConfig, partial: AgentConfig, spaces: tuple[Space, Space]) -> None:
    """Raise ValueError unless two runs differ in what they see, and not in what remembers it or acts.

    `spaces` are those of their actions.
    """
    if full.env == partial.env:
        raise ValueError(
            f"both runs see the same of {full.env.id}; the gap is between one that sees all and one "
            "that does not"
        )
    names = [name_of(config.policy.memory) for config in (full, partial)]
    if names[0] != names[1]:
        raise ValueError(
            f"the memories differ, {names[0]} and {names[1]}, and so the gap would be theirs as well; "
            "train both with the same one"
        )
    if spaces[0] != spaces[1]:
        raise ValueError(
            f"{full.env.id} and {partial.env.id} are different tasks: one is acted in by {spaces[0]}, the "
            f"other by {spaces[1]}"
        )


def check_bias(recurrent: AgentConfig, memoryless: AgentConfig) -> None:
    """Raise ValueError unless two runs are of one task, and the second alone has no memory."""
    for of, name in ((recurrent, "the run"), (memoryless, "the memoryless one")):
        has = name_of(of.policy.memory)
        if (has == _MEMORYLESS) != (of is memoryless):
            raise ValueError(
                f"{name} has the memory {has!r}; one must have a memory, and the other {_MEMORYLESS!r}"
            )
    tasks = [(config.env.id, config.env.kwargs) for config in (recurrent, memoryless)]
    if tasks[0] != tasks[1]:
        raise ValueError(
            f"the runs are of different tasks: {tasks[0][0]} {tasks[0][1]} and {tasks[1][0]} {tasks[1][1]}"
        )

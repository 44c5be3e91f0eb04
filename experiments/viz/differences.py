"""Differences of mean returns between policies, with 95 % intervals.

The gain of an agent is the increase of its return if only this agent changes to its best response. The
largest gain is the distance of a team from an equilibrium.

The observability gap and the memory bias are defined by POPGym Arcade (Wang et al. 2025, arXiv 2503.01450).
The observability gap is the return with full observations minus the return with partial observations. The
memory bias is the return of a recurrent policy minus the return of a memoryless policy, both with full
observations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space

from scrubjay.agents.teams.best_response import best_response
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.progress import ProgressDisplay
from scrubjay.experiments.runs.checkpoint import load_training
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.evaluation import EpisodeScores, evaluate_team
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig, TrainConfig
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.statistics import difference_interval, normal_interval
from scrubjay.experiments.tasks.environments import KwargValue
from scrubjay.experiments.viz.trace import Trace
from scrubjay.memory import name_of


@dataclass(frozen=True)
class Gain:
    """Mean increase of one agent's return per episode when this agent alone plays its best response.

    `before` is the agent's mean return in the unchanged team, over episodes with the same seeds. `low` and
    `high` are the limits of the confidence interval of `gain`.
    """

    before: float
    gain: float
    low: float
    high: float


def build_untrained_policy(config: TeamTaskConfig) -> TeamPolicy:
    """Build the initial policy of a run with this config."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "weights"))
        return config.make_policy()


def get_trust_region_config(config: TeamTaskConfig) -> GAMATRConfig:
    """Return the learner config for best responses. Raises TypeError if it is no GAMATRConfig."""
    if not isinstance(config.learner, GAMATRConfig):
        raise TypeError(
            f"learner is {type(config.learner).__name__}: best responses are learned with trust regions and "
            "need a GAMATRConfig"
        )
    return config.learner


def learner_state(run: Run) -> Mapping[str, Any]:
    """Return the learner state of the latest checkpoint, from which best responses start.

    Raises ValueError if the run has no checkpoint, or one that cannot be read.
    """
    return load_training(run.checkpoint)["learner"]


def measure_gains(
    policy: TeamPolicy,
    config: TeamTaskConfig,
    steps: int,
    episodes: int = 100,
    seed: int = 0,
    learner_checkpoint: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> list[Gain]:
    """Train each agent alone for `steps` environment steps, and return the increase of each agent's return.

    While one agent trains, the policies of all other agents stay fixed. The largest increase is the epsilon
    of the team: its distance from an equilibrium. The teams before and after the training play episodes with
    the same seeds. Their actions are sampled, since an equilibrium is defined for stochastic policies.

    Args:
        policy: Policy of the team; it is not changed.
        config: Config of the experiment, for its environment, learner and segment length.
        steps: Environment steps of training per agent.
        episodes: Evaluation episodes of each team.
        seed: Seed of sampling and of the episodes.
        learner_checkpoint: Learner state from which best responses start; None for an untrained policy.
        title: Title of a progress bar; None for no bar.
    """

    def play(team: TeamPolicy) -> np.ndarray:
        seed_of_episodes = derive_seed(seed, "evaluation")
        return np.asarray(
            evaluate_team(team, config.env, episodes, seed_of_episodes, deterministic=False).returns
        )

    learner = get_trust_region_config(config)
    before = play(policy)
    result = []
    with ProgressDisplay(title or "", steps * policy.num_agents, show=title is not None) as display:
        for agent in range(policy.num_agents):
            team = best_response(
                policy,
                agent,
                config.env.make_batch,
                learner,
                steps,
                config.segment_length,
                derive_seed(seed, "sampling"),
                learner_checkpoint,
                lambda done, agent=agent: display.update(agent * steps + min(done, steps), {}),
            )
            difference = play(team)[:, agent] - before[:, agent]
            low, high = normal_interval(difference)
            result.append(Gain(float(before[:, agent].mean()), float(difference.mean()), low, high))
    return result


@dataclasses.dataclass(frozen=True)
class BestResponses:
    """Best response of each agent to the rest of a run's team, each trained for `steps` environment steps.

    Raises ValueError if `steps` is below 1, and TypeError if the run is not a team trained by trust regions.
    """

    run: Run
    settings: dict[str, KwargValue]
    """Environment settings that override those of the run."""
    steps: int
    episodes: int = 100
    """Number of evaluation episodes per team."""
    seed: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"response_steps={self.steps}: must be at least 1")
        get_trust_region_config(self._config)

    @classmethod
    def from_run(cls, source: str, settings: dict[str, KwargValue], steps: int, trust: bool) -> BestResponses:
        """Build best responses to the run in directory `source`. Raises ValueError if `source` is a file."""
        if Path(source).is_file():
            raise ValueError(f"best responses need a run, but {source} is a file; name the run's directory")
        return cls(Run.load(source, trust), settings, steps)

    def add_to_trace(self, trace: Trace) -> Trace:
        """Train the best responses; return the trace with the gain of each agent added to `Trace.about`."""
        config = self._config
        gains = measure_gains(
            self.run.team_policy_for(config.env),
            config,
            self.steps,
            self.episodes,
            self.seed,
            learner_state(self.run),
            "best responses",
        )
        env = config.env.make()
        agents = list(env.possible_agents)
        env.close()
        about = {
            f"gain of {agent} alone": (
                f"{gain.gain:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}], from a return of {gain.before:.3g}"
            )
            for agent, gain in zip(agents, gains, strict=True)
        }
        about["gains"] = (
            f"lower bounds after {self.steps:,} steps of training; means over {self.episodes} episodes "
            "with sampled actions, with 95 % intervals"
        )
        return dataclasses.replace(trace, about=trace.about | about)

    @property
    def _config(self) -> TeamTaskConfig:
        config = self.run.config
        if not isinstance(config, TeamTaskConfig):
            raise TypeError(f"best responses need a run of a team; {self.run.path} is another type of run")
        kwargs = config.env.kwargs | self.settings
        return dataclasses.replace(config, env=dataclasses.replace(config.env, kwargs=kwargs))


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
    tasks = [(config.env.id, config.env.kwargs, config.env.wrappers) for config in (recurrent, memoryless)]
    if tasks[0] != tasks[1]:
        raise ValueError(
            f"the runs are of different tasks: {' '.join(map(str, tasks[0]))} and "
            f"{' '.join(map(str, tasks[1]))}; compare two runs of the same task"
        )

"""Distance of a team from an equilibrium, measured by the gain of each agent from training alone.

While one agent trains, all other agents keep their policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scrubjay.agents.teams.best_response import best_response
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.evaluation.team import PolicyActor, evaluate_team
from scrubjay.experiments.experiment_types.team import TeamTaskConfig
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.checkpoint import load_training
from scrubjay.experiments.runs.progress import ProgressDisplay
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.runs.statistics import normal_interval


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
    return load_training(run.checkpoint, run.trust)["learner"]


def measure_gains_with_progress(
    title: str,
    policy: TeamPolicy,
    config: TeamTaskConfig,
    steps: int,
    episodes: int,
    seed: int,
    learner_checkpoint: Mapping[str, Any] | None,
) -> list[Gain]:
    """Run `measure_gains` with a progress bar, and return the gain of each agent.

    Args:
        title: Title of the progress bar.
        policy: Policy of the team; it is not changed.
        config: Config of the experiment.
        steps: Environment steps of training per agent.
        episodes: Evaluation episodes of each team.
        seed: Seed of sampling and of the episodes.
        learner_checkpoint: Learner state from which best responses start; None for an untrained policy.
    """
    with ProgressDisplay(title, steps * policy.num_agents) as display:
        return measure_gains(
            policy,
            config,
            steps,
            episodes,
            seed,
            learner_checkpoint,
            lambda agent, done: display.update(agent * steps + min(done, steps), {}),
        )


def measure_gains(
    policy: TeamPolicy,
    config: TeamTaskConfig,
    steps: int,
    episodes: int = 100,
    seed: int = 0,
    learner_checkpoint: Mapping[str, Any] | None = None,
    on_update: Callable[[int, int], None] | None = None,
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
        on_update: Callback after each update, with the index of the agent and its steps so far.
    """

    def play(team: TeamPolicy) -> np.ndarray:
        actor = PolicyActor(team, deterministic=False)
        return evaluate_team(actor, config.env, episodes, derive_seed(seed, "evaluation")).returns

    learner = get_trust_region_config(config)
    before = play(policy)
    result = []
    for agent in range(policy.num_agents):
        team = best_response(
            policy,
            agent,
            config.env.make_teams,
            learner,
            steps,
            config.segment_length,
            derive_seed(seed, "sampling"),
            learner_checkpoint,
            None if on_update is None else lambda done, agent=agent: on_update(agent, done),
        )
        difference = play(team)[:, agent] - before[:, agent]
        low, high = normal_interval(difference)
        result.append(Gain(float(before[:, agent].mean()), float(difference.mean()), low, high))
    return result

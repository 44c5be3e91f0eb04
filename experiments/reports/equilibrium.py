"""How far a team is from an equilibrium: what each agent alone still gains by learning against the others."""

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
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.checkpoint import load_training
from scrubjay.experiments.runs.progress import ProgressDisplay
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.runs.statistics import normal_interval


@dataclass(frozen=True)
class Gain:
    """What one agent gained alone, in return per episode, over the same episodes."""

    before: float
    gain: float
    low: float
    high: float


def untrained(config: TeamTaskConfig) -> TeamPolicy:
    """Return the policy that a run of this config begins with."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "weights"))
        return config.make_policy()


def of_trust_region(config: TeamTaskConfig) -> GAMATRConfig:
    """Return the settings that best responses are learned with. Raises TypeError if the run has none."""
    if not isinstance(config.learner, GAMATRConfig):
        raise TypeError(
            f"best responses are learned by trust regions: a run by {type(config.learner).__name__} has no "
            "settings of GAMATRConfig"
        )
    return config.learner


def learner_state(run: Run) -> Mapping[str, Any]:
    """Return what the learner of a run's policy knows, which best responses begin from.

    Raises ValueError if the run has no checkpoint, or one that cannot be read.
    """
    return load_training(run.checkpoint, run.trust)["learner"]


def watched_gains(
    title: str,
    policy: TeamPolicy,
    config: TeamTaskConfig,
    steps: int,
    episodes: int,
    seed: int,
    learned: Mapping[str, Any] | None,
) -> list[Gain]:
    """Return `gains` behind a bar that says how far they are.

    Args:
        title: of the bar.
        policy: the team's, left as it is.
        config: of the experiment.
        steps: environment steps that each agent has to learn in.
        episodes: how many are played with each team.
        seed: of sampling and of the episodes.
        learned: the learner's state, as in `gains`.
    """
    with ProgressDisplay(title, steps * policy.num_agents) as display:
        return gains(
            policy,
            config,
            steps,
            episodes,
            seed,
            learned,
            lambda agent, done: display.update(agent * steps + min(done, steps), {}),
        )


def gains(
    policy: TeamPolicy,
    config: TeamTaskConfig,
    steps: int,
    episodes: int = 100,
    seed: int = 0,
    learned: Mapping[str, Any] | None = None,
    on_update: Callable[[int, int], None] | None = None,
) -> list[Gain]:
    """Return each agent's gain after learning alone for `steps`; the largest is the team's epsilon.

    Actions are drawn from the policies, as an equilibrium is one of random policies; both teams play episodes
    of the same seeds.

    Args:
        policy: the team's, left as it is.
        config: of the experiment: its environment, learner and segment length.
        steps: environment steps that each agent has to learn in.
        episodes: how many are played with each team.
        seed: of sampling and of the episodes.
        learned: the learner's state, as in `best_response`.
        on_update: told the agent and its steps after each update.
    """

    def play(team: TeamPolicy) -> np.ndarray:
        actor = PolicyActor(team, deterministic=False)
        return evaluate_team(actor, config.env, episodes, derive_seed(seed, "evaluation")).returns

    learner = of_trust_region(config)
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
            learned,
            None if on_update is None else lambda done, agent=agent: on_update(agent, done),
        )
        difference = play(team)[:, agent] - before[:, agent]
        low, high = normal_interval(difference)
        result.append(Gain(float(before[:, agent].mean()), float(difference.mean()), low, high))
    return result

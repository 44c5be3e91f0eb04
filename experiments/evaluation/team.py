"""Evaluation of a team on whole episodes, with a fixed number of episodes per environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool

from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.evaluation import MAX_STEPS
from scrubjay.experiments.evaluation.policy import (
    EpisodeScores,
    OnStep,
    evaluate,
    split_episodes,
    summarize_episodes,
)
from scrubjay.experiments.tasks.teams import TeamEnvConfig, find_known_team


class Actor(Protocol):
    """Callable that acts for all agents of all environments: a policy or a rule."""

    def __call__(
        self,
        env: Any,
        observations: Mapping[str, np.ndarray],
        alive: Bool[np.ndarray, "envs agents"],
        start: Bool[np.ndarray, " envs"],
    ) -> np.ndarray:
        """Return actions `[envs, agents, ...]`; `start` marks environments at the start of an episode.

        `env` is a batch of team environments or one ParallelEnv; rules may read its state.
        """
        ...


class PolicyActor:
    """Actor that carries the memory state of a policy; by default it takes the most likely actions."""

    def __init__(self, policy: TeamPolicy, deterministic: bool = True) -> None:
        self.policy = policy
        self.deterministic = deterministic
        self._state: Any = None

    def __call__(
        self, env: Any, observations: Mapping[str, np.ndarray], alive: np.ndarray, start: np.ndarray
    ) -> np.ndarray:
        """Return the actions of the policy."""
        actions, self._state = self.policy.act(observations, alive, self._state, start, self.deterministic)
        return actions


def list_rules(env_config: TeamEnvConfig) -> Mapping[str, Callable[[int], Any]]:
    """Return the rule-based actors for an environment: a dict from name to constructor.

    Each constructor takes a seed.
    """
    return find_known_team(env_config.id).rules()


@dataclass(frozen=True)
class TeamScores:
    """Scores of the finished episodes of a team."""

    returns: np.ndarray
    """Undiscounted sum of each agent's rewards, `[episodes, agents]`."""
    lengths: np.ndarray
    """Number of steps of each episode, `[episodes]`."""
    measures: dict[str, np.ndarray]
    """Measurements by name, such as the sum of rates. Each is an array `[episodes]` of means over the
    steps."""

    def summary(self) -> dict[str, float]:
        """Return means over episodes, with a 95 % interval for the team's return (the sum over agents)."""
        summary = summarize_episodes(self.returns.sum(axis=1), self.lengths)
        return summary | {name: float(values.mean()) for name, values in self.measures.items()}


def evaluate_team(
    actor: Actor,
    env_config: TeamEnvConfig,
    episodes: int = 100,
    seed: int = 0,
    max_steps: int = MAX_STEPS,
    on_step: OnStep | None = None,
) -> TeamScores:
    """Evaluate an actor on whole episodes; no global random generator is changed.

    Every environment plays a fixed number of episodes, because the episodes that finish first are mostly
    short ones. Scores are ordered by environment. With equal seeds, the k-th episodes of two actors are thus
    from the same environment.

    Args:
        actor: Actor to evaluate.
        env_config: Environment config.
        episodes: Number of episodes over all environments.
        seed: Seed of the environments and of sampled actions.
        max_steps: Maximum steps per environment.
        on_step: Callback after each step.

    Raises:
        ValueError: if `episodes` is less than 1 or an episode does not end within `max_steps`.
    """
    shares = split_episodes(episodes)
    num_envs = len(shares)
    env = env_config.make_teams(num_envs)
    episodes_by_env: list[list[tuple[np.ndarray, int, dict[str, float]]]] = [[] for _ in range(num_envs)]
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            observations, alive = env.reset(seed=seed)
            start = np.ones(num_envs, dtype=bool)
            returns, lengths = np.zeros((num_envs, len(env.possible_agents))), np.zeros(num_envs, dtype=int)
            sums: dict[str, np.ndarray] = {}
            for num_steps in range(1, max_steps + 1):
                step = env.step(actor(env, observations, alive, start))
                returns, lengths = returns + step.rewards, lengths + 1
                sums = {name: sums.get(name, 0.0) + values for name, values in step.infos.items()}
                for index in np.flatnonzero(step.dones):
                    if len(episodes_by_env[index]) < shares[index]:
                        means = {name: float(total[index] / lengths[index]) for name, total in sums.items()}
                        episodes_by_env[index].append((returns[index].copy(), int(lengths[index]), means))
                    returns[index] = lengths[index] = 0
                    for total in sums.values():
                        total[index] = 0.0
                if on_step is not None:
                    on_step(num_steps, sum(map(len, episodes_by_env)))
                if all(len(own) == share for own, share in zip(episodes_by_env, shares, strict=True)):
                    break
                observations, alive, start = step.observations, step.alive, step.dones
            else:
                raise ValueError(
                    f"{env_config.id}: an episode did not end within {max_steps:,} steps (max_steps)"
                )
    finally:
        env.close()
    all_episodes = [episode for own in episodes_by_env for episode in own]
    returns_of, lengths_of, measures_of = zip(*all_episodes, strict=True)
    return TeamScores(
        returns=np.stack(returns_of),
        lengths=np.array(lengths_of),
        measures={name: np.array([means[name] for means in measures_of]) for name in measures_of[0]},
    )


def evaluate_policy(
    policy: Any, env_config: Any, episodes: int = 100, seed: int = 0
) -> EpisodeScores | TeamScores:
    """Evaluate the policy of one agent or of a team, with the most likely action in every step.

    Raises the errors of `evaluate` for one agent and of `evaluate_team` for a team.
    """
    if isinstance(policy, TeamPolicy):
        return evaluate_team(PolicyActor(policy), env_config, episodes, seed)
    return evaluate(policy, env_config, episodes, seed)

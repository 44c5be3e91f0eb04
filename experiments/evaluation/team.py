"""How good a team is: whole episodes, each row playing its fixed share, and what was measured in them."""

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
    describe,
    evaluate,
    share_out,
)
from scrubjay.experiments.tasks.teams import TeamEnvConfig, known_by


class Actor(Protocol):
    """Whoever acts for all agents of all rows, a policy or a rule."""

    def __call__(
        self,
        env: Any,
        observations: Mapping[str, np.ndarray],
        alive: Bool[np.ndarray, "rows agents"],
        start: Bool[np.ndarray, " rows"],
    ) -> np.ndarray:
        """Return actions `[rows, agents, ...]`; `start` marks rows whose episode begins.

        `env` is what is acted in, rows of teams or one ParallelEnv; rules may look at it.
        """
        ...


class PolicyActor:
    """A policy that remembers from step to step; by default it takes its favourite actions."""

    def __init__(self, policy: TeamPolicy, deterministic: bool = True) -> None:
        self.policy = policy
        self.deterministic = deterministic
        self._state: Any = None

    def __call__(
        self, env: Any, observations: Mapping[str, np.ndarray], alive: np.ndarray, start: np.ndarray
    ) -> np.ndarray:
        """Return the policy's actions."""
        actions, self._state = self.policy.act(observations, alive, self._state, start, self.deterministic)
        return actions


def rules(env_config: TeamEnvConfig) -> Mapping[str, Callable[[int], Any]]:
    """Return the rules of thumb there are for an environment, by name, each made from a seed."""
    return known_by(env_config.id).rules()


@dataclass(frozen=True)
class TeamScores:
    """Finished episodes of one team."""

    returns: np.ndarray
    """Undiscounted sum of each agent's rewards, `[episodes, agents]`."""
    lengths: np.ndarray
    """Steps of each episode, `[episodes]`."""
    measures: dict[str, np.ndarray]
    """What the environment measured, averaged over the steps of each episode, `[episodes]`."""

    def summary(self) -> dict[str, float]:
        """Return means with 95 % intervals; a team's return is the sum over its agents."""
        summary = describe(self.returns.sum(axis=1), self.lengths)
        return summary | {name: float(values.mean()) for name, values in self.measures.items()}


def evaluate_team(
    actor: Actor,
    env_config: TeamEnvConfig,
    episodes: int = 100,
    seed: int = 0,
    max_steps: int = MAX_STEPS,
    on_step: OnStep | None = None,
) -> TeamScores:
    """Play whole episodes, in the order of rows; no global generator is changed.

    Every row plays a fixed share, since the first to finish would be the shortest. Under one seed two actors
    so have their k-th episodes in the same row.

    Args:
        actor: Who acts.
        env_config: Where.
        episodes: How many, over all rows.
        seed: Of the environments, and of actions that are drawn.
        max_steps: Of every row.
        on_step: Called after each step.

    Raises:
        ValueError: if fewer than 1 episode is asked for or one is longer than `max_steps`.
    """
    shares = share_out(episodes)
    rows = len(shares)
    env = env_config.make_teams(rows)
    finished: list[list[tuple[np.ndarray, int, dict[str, float]]]] = [[] for _ in range(rows)]
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            observations, alive = env.reset(seed=seed)
            start = np.ones(rows, dtype=bool)
            returns, lengths = np.zeros((rows, len(env.possible_agents))), np.zeros(rows, dtype=int)
            sums: dict[str, np.ndarray] = {}
            for taken in range(1, max_steps + 1):
                step = env.step(actor(env, observations, alive, start))
                returns, lengths = returns + step.rewards, lengths + 1
                sums = {name: sums.get(name, 0.0) + values for name, values in step.infos.items()}
                for row in np.flatnonzero(step.ended):
                    if len(finished[row]) < shares[row]:
                        means = {name: float(total[row] / lengths[row]) for name, total in sums.items()}
                        finished[row].append((returns[row].copy(), int(lengths[row]), means))
                    returns[row] = lengths[row] = 0
                    for total in sums.values():
                        total[row] = 0.0
                if on_step is not None:
                    on_step(taken, sum(map(len, finished)))
                if all(len(own) == share for own, share in zip(finished, shares, strict=True)):
                    break
                observations, alive, start = step.observations, step.alive, step.ended
            else:
                raise ValueError(
                    f"{env_config.id}: an episode did not end within {max_steps:,} steps (max_steps)"
                )
    finally:
        env.close()
    episodes_by_row = [episode for own in finished for episode in own]
    returns_of, lengths_of, measures_of = zip(*episodes_by_row, strict=True)
    return TeamScores(
        returns=np.stack(returns_of),
        lengths=np.array(lengths_of),
        measures={name: np.array([means[name] for means in measures_of]) for name in measures_of[0]},
    )


def evaluate_policy(
    policy: Any, env_config: Any, episodes: int = 100, seed: int = 0
) -> EpisodeScores | TeamScores:
    """Play whole episodes by the favourite actions of a policy of one agent, or of a team's.

    Raises ValueError as `evaluate` and `evaluate_team`.
    """
    if isinstance(policy, TeamPolicy):
        return evaluate_team(PolicyActor(policy), env_config, episodes, seed)
    return evaluate(policy, env_config, episodes, seed)

"""Evaluation of a policy or a team on whole episodes, with a fixed number of episodes per environment.

The episodes that finish first in any environment are mostly short ones, so they would be favored without a
fixed number.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool
from torch import nn

from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.rollout import (
    MEASURES,
    Actor,
    ActorInput,
    Choice,
    Environments,
    EnvStep,
    EpisodeCounter,
    EpisodeStats,
    PolicyActor,
    VectorEnvs,
    rollout,
)
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.env import TeamEnvs
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.sampler import TeamPolicyActor
from scrubjay.experiments.runs import MAX_STEPS
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.reinforcement import RLConfig
from scrubjay.experiments.statistics import normal_interval, wilson_interval
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.faults import environment_errors, exit_errors
from scrubjay.experiments.tasks.teams import TeamEnvConfig

_log = logging.getLogger(__name__)

MAX_ENVS = 64
"""Maximum number of environments in an evaluation."""

OnStep = Callable[[int, int], object]
"""Callback after each vector step, with the number of steps and of finished episodes."""


@runtime_checkable
class Rule(Protocol):
    """Rule-based policy of a team, which acts for all agents of all environments."""

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


class RuleActor:
    """Actor that follows a rule in `env`."""

    def __init__(self, rule: Rule, env: Any) -> None:
        self._rule, self._env = rule, env

    def act(self, inputs: ActorInput) -> Choice:
        """Choose the actions in all environments."""
        assert inputs.alive is not None
        return Choice(self._rule(self._env, inputs.observations, inputs.alive, inputs.starts))


def build_team_actor(player: TeamPolicy | Rule, env: Any, deterministic: bool = True) -> Actor:
    """Return the actor of a team's policy or of a rule in `env`.

    A policy takes its most likely actions if `deterministic` is True. Otherwise its actions are sampled.
    """
    if isinstance(player, TeamPolicy):
        return TeamPolicyActor(player, deterministic=deterministic)
    return RuleActor(player, env)


@dataclass(frozen=True)
class EpisodeScores:
    """Scores of the finished episodes of a policy or a team."""

    returns: tuple[float, ...] | np.ndarray
    """Sum of rewards of each episode; for a team, of each agent's rewards, `[episodes, agents]`."""
    lengths: tuple[int, ...]
    """Number of steps of each episode."""
    successes: tuple[float, ...] = ()
    """Success of each episode, from 0 to 1; empty if the environment does not report it."""
    measures: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Other measurements by name, one value per episode, such as whether the agent reached a choice. For a
    team, the means over the steps, such as that of the sum of rates."""

    def summary(self) -> dict[str, float]:
        """Return means, with 95 % intervals for return and success (Wilson interval for binary success).

        The return of a team is the sum over its agents.
        """
        returns = np.sum(self.returns, axis=1) if np.ndim(self.returns) == 2 else self.returns
        low, high = normal_interval(returns)
        summary = {
            "episodes": len(returns),
            "episodic_return": float(np.mean(returns)),
            "episodic_return_low": low,
            "episodic_return_high": high,
            "episodic_length": float(np.mean(self.lengths)),
        }
        if self.successes:
            if set(self.successes) <= {0.0, 1.0}:
                low, high = wilson_interval(round(sum(self.successes)), len(self.successes))
            else:
                low, high = np.clip(normal_interval(self.successes), 0.0, 1.0).tolist()
            summary |= {"success": float(np.mean(self.successes)), "success_low": low, "success_high": high}
        return summary | {name: float(np.mean(values)) for name, values in self.measures.items()}


def split_episodes(episodes: int) -> list[int]:
    """Return the number of episodes of each environment; the first environments may play one more.

    Raises ValueError if `episodes` is less than 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: must be at least 1")
    num_envs = min(episodes, MAX_ENVS)
    return [episodes // num_envs + (row < episodes % num_envs) for row in range(num_envs)]


def evaluate(
    policy: Policy,
    env: EnvConfig,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
    on_step: OnStep | None = None,
) -> EpisodeScores:
    """Evaluate a policy on whole episodes; neither the policy nor a global random generator is changed.

    Args:
        policy: Policy to evaluate.
        env: Environment config.
        episodes: Number of episodes over all environments.
        seed: Seed of the environments and of sampled actions.
        deterministic: Take the most likely action instead of sampling one.
        max_steps: Maximum steps per environment, because some environments may never end an episode.
            Unfinished episodes are left out.
        on_step: Callback after each step.

    Raises:
        ValueError: if `episodes` is less than 1 or no episode ended.
    """
    actor = PolicyActor(policy, deterministic=deterministic)
    with _in_eval_mode(policy):
        return evaluate_actor(actor, env, episodes, seed, max_steps, on_step, policy.action_masks)


def evaluate_actor(
    actor: Actor,
    env: EnvConfig,
    episodes: int = 100,
    seed: int = 0,
    max_steps: int = MAX_STEPS,
    on_step: OnStep | None = None,
    action_masks: bool = False,
) -> EpisodeScores:
    """Evaluate any actor of a single agent on whole episodes, the same as those of `evaluate`.

    Args:
        actor: Actor to evaluate.
        env: Environment config.
        episodes: Number of episodes over all environments.
        seed: Seed of the environments and of torch's generator during the evaluation.
        max_steps: Maximum steps per environment. Unfinished episodes are left out.
        on_step: Callback after each step.
        action_masks: True if the actor follows the environment's action masks.

    Raises:
        ValueError: if `episodes` is less than 1 or no episode ended.
    """
    shares = split_episodes(episodes)
    envs = _NamedEnvs(env.make_batch(len(shares)), env.id, action_masks)
    by_env = _play(envs, actor, shares, seed, max_steps, on_step)
    all_episodes = list(itertools.chain.from_iterable(by_env))
    if not all_episodes:
        raise ValueError(f"{env.id}: no episode ended within {max_steps:,} steps (max_steps)")
    columns: dict[str, list[Any]] = {"success": [episode.success for episode in all_episodes]}
    columns |= {name: [episode.measures.get(name) for episode in all_episodes] for name in MEASURES}
    measures = {name: tuple(values) for name, values in columns.items() if None not in values}
    return EpisodeScores(
        returns=tuple(episode.episode_return for episode in all_episodes),
        lengths=tuple(episode.length for episode in all_episodes),
        successes=measures.pop("success", ()),
        measures=measures,
    )


def evaluate_team(
    player: TeamPolicy | Rule,
    env_config: TeamEnvConfig,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
    on_step: OnStep | None = None,
) -> EpisodeScores:
    """Evaluate a team's policy or a rule on whole episodes; no global random generator is changed.

    Scores are ordered by environment. With equal seeds, the k-th episodes of two players are thus from the
    same environment.

    Args:
        player: Policy or rule to evaluate.
        env_config: Environment config.
        episodes: Number of episodes over all environments.
        seed: Seed of the environments and of sampled actions.
        deterministic: Take the most likely action of a policy instead of sampling one.
        max_steps: Maximum steps per environment.
        on_step: Callback after each step.

    Raises:
        ValueError: if `episodes` is less than 1 or an episode does not end within `max_steps`.
    """
    shares = split_episodes(episodes)
    env = env_config.make_batch(len(shares))
    actor = build_team_actor(player, env, deterministic)
    spaces = player.spaces if isinstance(player, TeamPolicy) else Spaces.from_env(env)
    with exit_errors(env_config.id), _in_eval_mode(player):
        by_env = _play(TeamEnvs(env, spaces.action_masks), actor, shares, seed, max_steps, on_step)
    if any(len(own) < share for own, share in zip(by_env, shares, strict=True)):
        raise ValueError(f"{env_config.id}: an episode did not end within {max_steps:,} steps (max_steps)")
    all_episodes: list[Any] = list(itertools.chain.from_iterable(by_env))
    successes = tuple(episode.success for episode in all_episodes)
    return EpisodeScores(
        returns=np.array([episode.returns for episode in all_episodes]),
        lengths=tuple(episode.length for episode in all_episodes),
        successes=() if None in successes else successes,
        measures={
            name: tuple(each.measures[name] for each in all_episodes) for name in all_episodes[0].measures
        },
    )


def evaluate_result(policy: Any, config: RLConfig, on_step: OnStep | None = None) -> dict[str, Any]:
    """Evaluate the policy of one agent or of a team, and return the summary for result.json.

    The summary is empty if `eval_episodes` is 0 or no episode ends.
    """
    return _summarize(policy, config, config.eval_episodes, 0, on_step) if config.eval_episodes else {}


def evaluate_step(
    policy: Any, config: RLConfig, step: int, on_step: OnStep | None = None
) -> dict[str, float]:
    """Evaluate the policy during training at `step`, and return the columns eval/* of metrics.jsonl.

    Actions are chosen as in `evaluate_result`. The episodes differ from those of other steps. There are no
    columns if no episode ends.
    """
    summary = _summarize(policy, config, config.eval_every_episodes, step, on_step)
    return {f"eval/{name}": value for name, value in summary.items()}


def _summarize(
    policy: Any, config: RLConfig, episodes: int, step: int, on_step: OnStep | None
) -> dict[str, float]:
    evaluate_player: Any = evaluate_team if isinstance(policy, TeamPolicy) else evaluate
    seed = derive_seed(config.seed, "evaluation", step)
    try:
        return evaluate_player(policy, config.env, episodes, seed, on_step=on_step).summary()
    except ValueError as error:  # training succeeded; the environment never ends an episode
        _log.warning("not evaluated: %s", error)
        return {}


@contextlib.contextmanager
def _in_eval_mode(player: object) -> Iterator[None]:
    """Put a module in evaluation mode in the `with` block; do nothing with a rule."""
    if not isinstance(player, nn.Module):
        yield
        return
    training = player.training
    player.eval()
    try:
        yield
    finally:
        player.train(training)


class _NamedEnvs(VectorEnvs):
    """Vector environment whose errors name the environment."""

    def __init__(self, env: Any, name: str, action_masks: bool) -> None:
        super().__init__(env, action_masks)
        self._name = name

    def reset(self, seed: int | None = None) -> ActorInput:
        with environment_errors(self._name):
            return super().reset(seed)

    def step(self, actions: Any) -> EnvStep:
        with environment_errors(self._name):
            return super().step(actions)


def _play(
    envs: Environments,
    actor: Actor,
    shares: Sequence[int],
    seed: int,
    max_steps: int,
    on_step: OnStep | None,
) -> list[list[EpisodeStats]]:
    """Play `shares[i]` episodes in environment i and close the environments; return the episodes of each.

    Episodes that are not finished after `max_steps` steps are left out.
    """
    by_env: list[list[EpisodeStats]] = [[] for _ in shares]
    counter = EpisodeCounter(envs.num_envs, envs.num_agents)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            steps = rollout(envs, actor, envs.reset(seed))
            for num_steps, step in enumerate(itertools.islice(steps, max_steps), 1):
                for row, episode in counter.count(step.result):
                    if len(by_env[row]) < shares[row]:
                        by_env[row].append(episode)
                if on_step is not None:
                    on_step(num_steps, sum(map(len, by_env)))
                if all(len(own) == share for own, share in zip(by_env, shares, strict=True)):
                    break
    finally:
        envs.close()
    return by_env

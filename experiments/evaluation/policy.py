"""Evaluation of a policy on whole episodes, with a fixed number of episodes per environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from scrubjay.agents.rl.observations import check_indices, leaf_spaces, leaf_values, to_tensors
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.sampler import MEASURES, final_info
from scrubjay.experiments.evaluation import MAX_STEPS
from scrubjay.experiments.statistics import normal_interval, wilson_interval
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.faults import environment_errors

MAX_ENVS = 64

OnStep = Callable[[int, int], object]
"""Callback after each vector step, with the number of steps and of finished episodes."""


def split_episodes(episodes: int) -> list[int]:
    """Return the number of episodes of each environment; the first environments may play one more.

    Raises ValueError if `episodes` is less than 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: must be at least 1")
    num_envs = min(episodes, MAX_ENVS)
    return [episodes // num_envs + (row < episodes % num_envs) for row in range(num_envs)]


def summarize_episodes(
    returns: Sequence[float] | np.ndarray, lengths: Sequence[int] | np.ndarray
) -> dict[str, float]:
    """Return the number of episodes, their mean return with its 95 % interval, and their mean length."""
    low, high = normal_interval(returns)
    return {
        "episodes": len(returns),
        "episodic_return": float(np.mean(returns)),
        "episodic_return_low": low,
        "episodic_return_high": high,
        "episodic_length": float(np.mean(lengths)),
    }


@dataclass(frozen=True)
class EpisodeScores:
    """Scores of the finished episodes of a policy."""

    returns: tuple[float, ...]
    """Sum of rewards of each episode."""
    lengths: tuple[int, ...]
    """Number of steps of each episode."""
    successes: tuple[float, ...]
    """Success of each episode, from 0 to 1; empty if the environment does not report it."""
    measures: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Other measurements by name, one value per episode, such as whether the agent reached a choice."""

    def summary(self) -> dict[str, float]:
        """Return means, with 95 % intervals for return and success (Wilson interval for binary success)."""
        summary = summarize_episodes(self.returns, self.lengths)
        if self.successes:
            if set(self.successes) <= {0.0, 1.0}:
                low, high = wilson_interval(round(sum(self.successes)), len(self.successes))
            else:
                low, high = normal_interval(self.successes)
            summary |= {"success": float(np.mean(self.successes)), "success_low": low, "success_high": high}
        return summary | {name: float(np.mean(values)) for name, values in self.measures.items()}


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

    Every environment plays a fixed number of episodes. If the evaluation used the first episodes that finish
    in any environment, it would favor short episodes.

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
    shares = split_episodes(episodes)
    num_envs = len(shares)
    episodes_by_env: list[list[tuple[float, int, dict[str, float | None]]]] = [[] for _ in range(num_envs)]
    envs = env.make_vector(num_envs)
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            leaves = leaf_spaces(policy.observation_space)
            with environment_errors(env.id):
                observations, _ = envs.reset(seed=seed)
                check_indices(leaves, leaf_values(observations))
            start = np.zeros(num_envs, dtype=bool)
            stepper = policy.memory.stepper(policy.initial_state(num_envs))
            returns, lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=int)
            for step in range(max_steps):
                if all(len(done) >= share for done, share in zip(episodes_by_env, shares, strict=True)):
                    break
                inputs = to_tensors(policy.observation_space, observations, policy.device)
                episode_starts = torch.from_numpy(start).to(policy.device) if start.any() else None
                action = policy.advance(inputs, stepper, episode_starts, deterministic=deterministic).action
                actions = policy.env_actions(action)
                with environment_errors(env.id):
                    observations, rewards, terminated, truncated, infos = envs.step(actions)
                    check_indices(leaves, leaf_values(observations))
                returns, lengths = returns + rewards, lengths + 1
                start = np.logical_or(terminated, truncated)
                for index in np.flatnonzero(start):
                    outcomes = {name: final_info(infos, int(index), name) for name in ("success", *MEASURES)}
                    episodes_by_env[index].append((float(returns[index]), int(lengths[index]), outcomes))
                    returns[index] = lengths[index] = 0
                if on_step is not None:
                    on_step(step + 1, sum(map(len, episodes_by_env)))
    finally:
        policy.train(training)
        envs.close()
    scored_episodes = [
        episode for done, share in zip(episodes_by_env, shares, strict=True) for episode in done[:share]
    ]
    if not scored_episodes:
        raise ValueError(f"{env.id}: no episode ended within {max_steps:,} steps (max_steps)")
    columns = {name: [episode[2][name] for episode in scored_episodes] for name in scored_episodes[0][2]}
    whole = {name: tuple(v for v in values if v is not None) for name, values in columns.items()}
    whole = {name: values for name, values in whole.items() if len(values) == len(scored_episodes)}
    return EpisodeScores(
        returns=tuple(episode[0] for episode in scored_episodes),
        lengths=tuple(episode[1] for episode in scored_episodes),
        successes=whole.pop("success", ()),
        measures=whole,
    )

"""How good a policy is: whole episodes, each environment copy playing its fixed share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from scrubjay.agents.rl.observations import check_indices, leaf_spaces, leaf_values, to_tensors
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.sampler import MEASURES, final_info
from scrubjay.experiments.evaluation import MAX_STEPS
from scrubjay.experiments.runs.statistics import normal_interval, wilson_interval
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.playing import playing

MAX_COPIES = 64

OnStep = Callable[[int, int], object]
"""Called after each step of all copies: how many each has taken, how many episodes have ended."""


def share_out(episodes: int) -> list[int]:
    """Return how many episodes each copy of an environment plays, the first ones one more if need be.

    Raises ValueError if there are fewer than 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: at least 1 is needed")
    copies = min(episodes, MAX_COPIES)
    return [episodes // copies + (row < episodes % copies) for row in range(copies)]


def describe(returns: Sequence[float] | np.ndarray, lengths: Sequence[int] | np.ndarray) -> dict[str, float]:
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
    """Finished episodes of one policy."""

    returns: tuple[float, ...]
    """Sum of rewards of each episode."""
    lengths: tuple[int, ...]
    """Steps of each episode."""
    successes: tuple[float, ...]
    """How well each succeeded, from 0 to 1; empty where the environment does not say."""
    measures: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """What else the environment says of each episode, such as whether a choice was reached at all."""

    def summary(self) -> dict[str, float]:
        """Return means with 95 % intervals: Wilson's for success that is yes or no, else the normal one."""
        summary = describe(self.returns, self.lengths)
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
    """Play whole episodes; neither the policy nor any global generator is changed.

    Every copy of the environment plays a fixed share, since the first to finish would be the shortest.

    Args:
        policy: Who acts.
        env: Where.
        episodes: How many, over all copies.
        seed: Of the environments, and of actions that are drawn.
        deterministic: Take the likeliest action instead of drawing one.
        max_steps: Of every copy; episodes still going on then are left out, since nothing says that an
            environment ever ends.
        on_step: Called after each step.

    Raises:
        ValueError: if fewer than 1 episode is asked for or none ended.
    """
    shares = share_out(episodes)
    copies = len(shares)
    finished: list[list[tuple[float, int, dict[str, float | None]]]] = [[] for _ in range(copies)]
    envs = env.make_vector(copies)
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            leaves = leaf_spaces(policy.observation_space)
            with playing(env.id):
                observations, _ = envs.reset(seed=seed)
                check_indices(leaves, leaf_values(observations))
            start = np.zeros(copies, dtype=bool)
            rows = policy.memory.stepper(policy.initial_state(copies))
            returns, lengths = np.zeros(copies), np.zeros(copies, dtype=int)
            for step in range(max_steps):
                if all(len(done) >= share for done, share in zip(finished, shares, strict=True)):
                    break
                seen = to_tensors(policy.observation_space, observations, policy.device)
                begun = torch.from_numpy(start).to(policy.device) if start.any() else None
                action = policy.advance(seen, rows, begun, deterministic=deterministic).action
                actions = policy.env_actions(action)
                with playing(env.id):
                    observations, rewards, terminated, truncated, infos = envs.step(actions)
                    check_indices(leaves, leaf_values(observations))
                returns, lengths = returns + rewards, lengths + 1
                start = np.logical_or(terminated, truncated)
                for row in np.flatnonzero(start):
                    told = {name: final_info(infos, int(row), name) for name in ("success", *MEASURES)}
                    finished[row].append((float(returns[row]), int(lengths[row]), told))
                    returns[row] = lengths[row] = 0
                if on_step is not None:
                    on_step(step + 1, sum(map(len, finished)))
    finally:
        policy.train(training)
        envs.close()
    counted = [episode for done, share in zip(finished, shares, strict=True) for episode in done[:share]]
    if not counted:
        raise ValueError(f"{env.id}: no episode ended within {max_steps:,} steps (max_steps)")
    columns = {name: [episode[2][name] for episode in counted] for name in counted[0][2]}
    whole = {name: tuple(v for v in values if v is not None) for name, values in columns.items()}
    whole = {name: values for name, values in whole.items() if len(values) == len(counted)}
    return EpisodeScores(
        returns=tuple(episode[0] for episode in counted),
        lengths=tuple(episode[1] for episode in counted),
        successes=whole.pop("success", ()),
        measures=whole,
    )

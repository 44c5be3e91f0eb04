"""Watch a team: one episode as an animated GIF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from scrubjay.experiments.play import picture, write_gif

TeamActor = Callable[[Any, Mapping[str, np.ndarray], np.ndarray, np.ndarray], np.ndarray]
"""From the environment, leaves of observations `[rows, agents, ...]`, who is alive `[rows, agents]` and which rows
begin an episode `[rows]`, to actions `[rows, agents, ...]`; a rule or a policy."""


@dataclass(frozen=True)
class TeamEpisode:
    """What came of the episode."""

    frames: int
    """Pictures written."""
    returns: dict[str, float]
    """Sum of rewards of each agent."""
    measures: dict[str, float]
    """What the environment measured, such as the sum of rates, averaged over steps."""


def play_team(
    env: ParallelEnv[Any, Any, Any], actor: TeamActor, out: Path | str, seed: int = 0, max_steps: int = 500
) -> TeamEpisode:
    """Write one episode of a team, whose agents are alike, to a GIF; the environment is left as it ended.

    Raises ValueError if the environment renders no pictures, or `max_steps` is below 1.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: at least 1 is needed")
    name = str(env.metadata.get("name", type(env).__name__))
    observations, _ = env.reset(seed=seed)
    frames = [picture(env, name)]
    returns = dict.fromkeys(env.possible_agents, 0.0)
    told: dict[str, list[float]] = {}
    start = np.ones(1, dtype=bool)
    while env.agents and len(frames) <= max_steps:
        alive = np.array([[agent in env.agents for agent in env.possible_agents]])
        actions = actor(env, _batch(env, observations), alive, start)[0]
        chosen = {
            agent: action
            for agent, action in zip(env.possible_agents, actions, strict=True)
            if agent in env.agents
        }
        observations, rewards, _, _, infos = env.step(chosen)
        for agent, reward in rewards.items():
            returns[agent] += float(reward)
        for measure, value in next(iter(infos.values()), {}).items():
            if isinstance(value, (int, float, np.integer, np.floating)):
                told.setdefault(measure, []).append(float(value))
        frames.append(picture(env, name))
        start = np.zeros(1, dtype=bool)
    write_gif(frames, out, float(env.metadata.get("render_fps") or 10))
    return TeamEpisode(
        len(frames), returns, {measure: float(np.mean(values)) for measure, values in told.items()}
    )


def _batch(env: ParallelEnv[Any, Any, Any], observations: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the leaves of all agents' observations as one row `[1, agents, ...]`; zeros for who is gone."""
    space = env.observation_space(env.possible_agents[0])
    leaves = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    batch = {}
    for leaf, part in leaves.items():
        batch[leaf] = np.zeros((1, len(env.possible_agents), *(part.shape or ())), dtype=part.dtype)
        for column, agent in enumerate(env.possible_agents):
            if agent in observations:
                batch[leaf][0, column] = observations[agent][leaf] if leaf else observations[agent]
    return batch

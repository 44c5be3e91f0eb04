"""Recording of one episode of a team as an animated GIF or a video."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pettingzoo import ParallelEnv

from scrubjay.agents.rl.observations import leaf_spaces, leaf_values
from scrubjay.experiments.cli.arguments import UsageError, did_you_mean
from scrubjay.experiments.evaluation.team import Actor, PolicyActor, list_rules
from scrubjay.experiments.experiment_types.team import TeamTaskConfig
from scrubjay.experiments.recipes import RECIPES
from scrubjay.experiments.recipes.overrides import with_env_settings
from scrubjay.experiments.reports.episode import render_frame, write_episode
from scrubjay.experiments.run import Run
from scrubjay.experiments.tasks.teams import KNOWN_TEAMS, TeamEnvConfig, find_known_team


@dataclass(frozen=True)
class TeamSetup:
    """Environment and actor of a recording."""

    env: TeamEnvConfig
    """Environment of the team."""
    actor: Actor
    """Function that selects the actions of all agents."""
    folder: Path
    """Default output directory: the run directory, or the current directory."""


@dataclass(frozen=True)
class TeamEpisode:
    """Result of an episode."""

    frames: int
    """Number of pictures written."""
    returns: dict[str, float]
    """Sum of rewards of each agent."""
    measures: dict[str, float]
    """Measures of the environment by name, such as "sum_rate_bps"; means over the steps of the episode."""


def set_up_team(
    source: str,
    policy: str | None,
    preset: str | None,
    settings: Sequence[str],
    seed: int,
    trust: bool = False,
) -> TeamSetup | None:
    """Return environment and actor for a team run, a recipe or a name in `KNOWN_TEAMS`; else None.

    Args:
        source: Run directory, recipe, or name in `KNOWN_TEAMS`. A run also sets the default policy.
        policy: Directory of a team run, "random", or a rule of the environment; None for the default.
        preset: Preset of the environment; it replaces the settings of the run or recipe.
        settings: Environment settings `name=value`.
        seed: Seed of random actions.
        trust: Trust the run, as in `Run.load`.

    Raises:
        UsageError: for an unknown policy, a run of a single agent, or an invalid setting.
        ValueError: if the policy does not match the environment.
    """
    known_env = KNOWN_TEAMS.get(source)
    run = None if known_env else _load_team_run(source, trust)
    recipe = RECIPES[source]() if source in RECIPES else None
    if run is not None:
        env = _task(run).env
    elif isinstance(recipe, TeamTaskConfig):
        env = recipe.env
    elif known_env is not None:
        env = TeamEnvConfig(known_env.id)
    else:
        return None
    policy_run = run
    if policy is not None:
        policy_run = _load_team_run(policy, trust)
        if known_env is not None and policy_run is not None:
            env = _task(policy_run).env
    if preset is not None:
        if not find_known_team(env.id).presets:
            env_names = [name for name, teams in KNOWN_TEAMS.items() if teams.presets]
            raise UsageError(f"--preset is supported only by {' and '.join(env_names)}, not by {env.id}")
        env = TeamEnvConfig(env.id, {"preset": preset})
    env = with_env_settings(env, settings)
    actor = (
        _build_actor(policy, env, seed)
        if policy_run is None
        else PolicyActor(policy_run.team_policy_for(env))
    )
    return TeamSetup(env, actor, Path() if run is None else run.path)


def play_team(
    env: ParallelEnv[Any, Any, Any], actor: Actor, out: Path | str, seed: int = 0, max_steps: int = 500
) -> TeamEpisode:
    """Record one episode of a team of identical agents to a GIF or MP4.

    The environment stays in its final state. Raises ValueError if the environment does not render pictures,
    or if `max_steps` is below 1.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: must be at least 1")
    metadata = getattr(env, "metadata", {})  # ParallelEnv does not define it
    name = str(metadata.get("name", type(env).__name__))
    observations, _ = env.reset(seed=seed)
    frames = [render_frame(env, name)]
    returns = dict.fromkeys(env.possible_agents, 0.0)
    values_by_measure: dict[str, list[float]] = {}
    start = np.ones(1, dtype=bool)
    while env.agents and len(frames) <= max_steps:
        alive = np.array([[agent in env.agents for agent in env.possible_agents]])
        actions = actor(env, batch_observations(env, observations), alive, start)[0]
        agent_actions = {
            agent: action
            for agent, action in zip(env.possible_agents, actions, strict=True)
            if agent in env.agents
        }
        observations, rewards, _, _, infos = env.step(agent_actions)
        for agent, reward in rewards.items():
            returns[agent] += float(reward)
        for measure, value in next(iter(infos.values()), {}).items():
            if isinstance(value, (int, float, np.integer, np.floating)):
                values_by_measure.setdefault(measure, []).append(float(value))
        frames.append(render_frame(env, name))
        start = np.zeros(1, dtype=bool)
    write_episode(frames, out, float(metadata.get("render_fps") or 10))
    return TeamEpisode(
        len(frames),
        returns,
        {measure: float(np.mean(values)) for measure, values in values_by_measure.items()},
    )


def batch_observations(
    env: ParallelEnv[Any, Any, Any], observations: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return a dict from each leaf of the observation space to an array `[1, agents, ...]`.

    The entries of agents that have left the episode are zero.
    """
    space = env.observation_space(env.possible_agents[0])
    batch = {
        name: np.zeros((1, len(env.possible_agents), *(leaf.shape or ())), dtype=leaf.dtype)
        for name, leaf in leaf_spaces(space).items()
    }
    for column, agent in enumerate(env.possible_agents):
        if agent in observations:
            for name, value in leaf_values(observations[agent]).items():
                batch[name][0, column] = value
    return batch


def _load_team_run(path: str, trust: bool) -> Run | None:
    """Load a team run; None if the directory does not exist or is not a team run."""
    run = Run.load(path, trust) if Path(path).exists() else None
    return run if run is not None and isinstance(run.config, TeamTaskConfig) else None


def _task(run: Run) -> TeamTaskConfig:
    assert isinstance(run.config, TeamTaskConfig)
    return run.config


def _build_actor(name: str | None, env: TeamEnvConfig, seed: int) -> Actor:
    builders: dict[str, Callable[[int], Actor]] = {"random": _build_random_actor, **list_rules(env)}
    name = name or find_known_team(env.id).default_rule
    if name not in builders:
        choices = f"{', '.join(builders)}, or the directory of a team run"
        raise UsageError(
            f"unknown policy {name!r}; choose from {choices}{did_you_mean(name, list(builders))}"
        )
    return builders[name](seed)


def _build_random_actor(seed: int) -> Actor:
    def act(
        env: ParallelEnv[Any, Any, Any], observations: Any, alive: np.ndarray, start: np.ndarray
    ) -> np.ndarray:
        if start.any():
            for number, agent in enumerate(env.possible_agents):
                env.action_space(agent).seed(seed + number)
        return np.stack([[env.action_space(agent).sample() for agent in env.possible_agents]])

    return act

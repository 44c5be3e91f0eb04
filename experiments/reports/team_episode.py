"""Watch a team: who plays what, and one episode of it as an animated GIF, or as a film."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pettingzoo import ParallelEnv

from scrubjay.agents.rl.observations import leaf_spaces, leaf_values
from scrubjay.experiments.evaluation.team import Actor, PolicyActor, rules
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.recipes import RECIPES
from scrubjay.experiments.recipes.overrides import with_settings
from scrubjay.experiments.reports.episode import picture, write_episode
from scrubjay.experiments.run import Run
from scrubjay.experiments.tasks.teams import KNOWN_TEAMS, TeamEnvConfig, known_by
from scrubjay.experiments.words.arguments import UsageError, did_you_mean


@dataclass(frozen=True)
class Cast:
    """Who plays what."""

    env: TeamEnvConfig
    """The environment of the team."""
    actor: Actor
    """Who acts for all of it."""
    folder: Path
    """Where what is written belongs, if nothing else is said: the run's directory, or the current one."""


@dataclass(frozen=True)
class TeamEpisode:
    """What came of the episode."""

    frames: int
    """Pictures written."""
    returns: dict[str, float]
    """Sum of rewards of each agent."""
    measures: dict[str, float]
    """What the environment measured, such as the sum of rates, averaged over steps."""


def cast_team(
    what: str,
    policy: str | None,
    preset: str | None,
    settings: Sequence[str],
    seed: int,
    trust: bool = False,
) -> Cast | None:
    """Return who plays a team's run, a recipe of teams or one of `KNOWN_TEAMS`; None if it is none of these.

    Args:
        what: what to play; of a run its environment, and its policy where no other is named.
        policy: the directory of a team's run, "random", or a rule of thumb that the environment has.
        preset: of an environment that has presets, instead of what the run or recipe says.
        settings: `name=value`, handed to the environment.
        seed: of actions at random.
        trust: whether a run may make code run, as in `Run.load`.

    Raises:
        UsageError: for an unknown policy, a run of one agent among them, or a bad setting.
        ValueError: if the policy learned in another kind of environment.
    """
    known = KNOWN_TEAMS.get(what)
    run = None if known else _team_run(what, trust)
    recipe = RECIPES[what]() if what in RECIPES else None
    if run is not None:
        env = _task(run).env
    elif isinstance(recipe, TeamTaskConfig):
        env = recipe.env
    elif known is not None:
        env = TeamEnvConfig(known.id)
    else:
        return None
    learned = run
    if policy is not None:
        learned = _team_run(policy, trust)
        if known is not None and learned is not None:
            env = _task(learned).env
    if preset is not None:
        if not known_by(env.id).presets:
            having = [name for name, teams in KNOWN_TEAMS.items() if teams.presets]
            raise UsageError(f"--preset is of {' and '.join(having)}, not of {env.id}")
        env = TeamEnvConfig(env.id, {"preset": preset})
    env = with_settings(env, settings)
    actor = _by_name(policy, env, seed) if learned is None else PolicyActor(learned.team_policy_in(env))
    return Cast(env, actor, Path() if run is None else run.path)


def play_team(
    env: ParallelEnv[Any, Any, Any], actor: Actor, out: Path | str, seed: int = 0, max_steps: int = 500
) -> TeamEpisode:
    """Write one episode of a team, whose agents are alike, to a GIF or MP4.

    The environment is left as it ended. Raises ValueError if it renders no pictures, or `max_steps` is below
    1.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: at least 1 is needed")
    metadata = getattr(env, "metadata", {})  # of which ParallelEnv itself has none
    name = str(metadata.get("name", type(env).__name__))
    observations, _ = env.reset(seed=seed)
    frames = [picture(env, name)]
    returns = dict.fromkeys(env.possible_agents, 0.0)
    told: dict[str, list[float]] = {}
    start = np.ones(1, dtype=bool)
    while env.agents and len(frames) <= max_steps:
        alive = np.array([[agent in env.agents for agent in env.possible_agents]])
        actions = actor(env, batch(env, observations), alive, start)[0]
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
    write_episode(frames, out, float(metadata.get("render_fps") or 10))
    return TeamEpisode(
        len(frames), returns, {measure: float(np.mean(values)) for measure, values in told.items()}
    )


def batch(env: ParallelEnv[Any, Any, Any], observations: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the leaves of all agents' observations as one row `[1, agents, ...]`; zeros for who is gone."""
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


def _team_run(path: str, trust: bool) -> Run | None:
    """Return the team's run in that directory; None without such a directory, or if it is of no team."""
    run = Run.load(path, trust) if Path(path).exists() else None
    return run if run is not None and isinstance(run.config, TeamTaskConfig) else None


def _task(run: Run) -> TeamTaskConfig:
    assert isinstance(run.config, TeamTaskConfig)
    return run.config


def _by_name(name: str | None, env: TeamEnvConfig, seed: int) -> Actor:
    known: dict[str, Callable[[int], Actor]] = {"random": _at_random, **rules(env)}
    name = name or known_by(env.id).usual_rule
    if name not in known:
        choices = f"{', '.join(known)}, or the directory of a team's run"
        raise UsageError(f"unknown policy {name!r}; choose from {choices}{did_you_mean(name, list(known))}")
    return known[name](seed)


def _at_random(seed: int) -> Actor:
    def act(
        env: ParallelEnv[Any, Any, Any], observations: Any, alive: np.ndarray, start: np.ndarray
    ) -> np.ndarray:
        if start.any():
            for number, agent in enumerate(env.possible_agents):
                env.action_space(agent).seed(seed + number)
        return np.stack([[env.action_space(agent).sample() for agent in env.possible_agents]])

    return act

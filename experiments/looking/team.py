"""One episode of a team as a trace: the map, who heard whom, what memories read, rewards and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pettingzoo import ParallelEnv

from scrubjay.agents.rl.observations import from_leaves
from scrubjay.agents.teams.policy import AgentLook, TeamPolicy
from scrubjay.experiments.looking.episode import Film, told
from scrubjay.experiments.looking.trace import Recall, Step, Trace
from scrubjay.experiments.reports.episode import picture
from scrubjay.experiments.reports.team_episode import batch
from scrubjay.experiments.tasks.teams import TeamEnvConfig

_MOST_HEARD = 24
"""Pairs of agents that a step shows, those who hear most of each other."""


@torch.no_grad()
def trace_team(
    policy: TeamPolicy,
    env_config: TeamEnvConfig,
    seed: int = 1,
    max_steps: int = 500,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Trace:
    """Play one episode, every agent taking its likeliest action, and return its trace.

    A step's options say how much of what an agent hears is of another, in the last round; names in tracks and
    of what is recalled begin with the agent's. Raises ValueError if `max_steps` is below 1.

    Args:
        policy: Who plays.
        env_config: Where.
        seed: Of the episode.
        max_steps: Where to cut a long one.
        on_step: Called with how much is done, of how much.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: at least 1 step is shown")
    training, (env, drawn), film = policy.training, _made(env_config), Film()
    policy.eval()
    try:
        agents, steps = list(env.possible_agents), []
        tracks: dict[str, list[float | None]] = {
            f"{agent}/{name}": [] for agent in agents for name in ("reward", "value")
        }
        observations, _ = env.reset(seed=seed)
        state = policy.initial_state(1)
        while env.agents and len(steps) < max_steps:
            place = film.keep(picture(env, "")) if drawn else None
            seen = from_leaves({key: torch.as_tensor(leaf) for key, leaf in batch(env, observations).items()})
            alive = torch.tensor([[agent in env.agents for agent in agents]])
            looks = policy.looked(_first(seen), alive[0], state)
            did = policy.step(seen, alive, state, deterministic=True)
            state, actions = did.state, policy.env_actions(did.action)[0]
            chosen = {a: action for a, action in zip(agents, actions, strict=True) if a in env.agents}
            living = set(chosen)
            steps.append(
                Step(
                    len(steps),
                    place,
                    text="" if drawn else "; ".join(f"{a} {told(observations[a])}" for a in chosen),
                    choice="; ".join(f"{agent} {told(action)}" for agent, action in chosen.items()),
                    options=_heard(agents, looks, living),
                    recalled=_recalled(agents, looks, living),
                )
            )
            observations, rewards, *_ = env.step(chosen)
            for index, agent in enumerate(agents):
                tracks[f"{agent}/reward"].append(_finite(rewards.get(agent)))
                value = float(did.value[0, index]) if agent in living else None
                tracks[f"{agent}/value"].append(_finite(value))
            on_step(len(steps), max_steps)
        rate = float(getattr(env, "metadata", {}).get("render_fps") or 10)
    finally:
        env.close()
        policy.train(training)
    totals = {a: sum(reward or 0 for reward in tracks[f"{a}/reward"]) for a in agents}
    return Trace(
        kind="team",
        title=f"{env_config.id}, episode {seed}",
        steps=tuple(steps),
        about={"steps": str(len(steps)), **{f"return of {a}": f"{total:g}" for a, total in totals.items()}},
        rate=rate,
        pictures=film.pictures,
        tracks={name: tuple(row) for name, row in tracks.items()},
    )


def _made(env_config: TeamEnvConfig) -> tuple[ParallelEnv[Any, Any, Any], bool]:
    """Return the environment, and whether it draws pictures."""
    try:
        return env_config.make(render_mode="rgb_array"), True
    except ValueError:
        return env_config.make(), False


def _first(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {name: _first(leaf) for name, leaf in observation.items()}
    return observation[0]


def _heard(agents: list[str], looks: list[AgentLook], living: set[str]) -> dict[str, float]:
    pairs = {
        f"{agent} hears {other}": min(float(share), 1.0)
        for agent, look in zip(agents, looks, strict=True)
        if look.heard is not None and agent in living
        for other, share in zip(agents, look.heard[-1], strict=True)
        if other != agent and other in living
    }
    most = sorted(pairs, key=lambda name: -pairs[name])[:_MOST_HEARD]
    return {name: share for name, share in pairs.items() if name in most}


def _recalled(agents: list[str], looks: list[AgentLook], living: set[str]) -> tuple[Recall, ...]:
    return tuple(
        Recall.of(f"{agent}/{name}", read.steps[0], read.weights[0])
        for agent, look in zip(agents, looks, strict=True)
        if look.recalled is not None and agent in living
        for name, read in look.recalled.reads.items()
    )


def _finite(number: Any) -> float | None:
    return None if number is None or not np.isfinite(number) else float(number)

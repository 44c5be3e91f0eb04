"""One episode of a team as a trace: the map, who heard whom, what memories read, rewards and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from scrubjay.agents.rl.observations import from_leaves
from scrubjay.agents.teams.network import AgentLook
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.looking.episode import Film, told
from scrubjay.experiments.looking.trace import Recall, Step, Trace
from scrubjay.experiments.reports.episode import drawing, picture
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
    of what is recalled begin with the agent's. What agents send each other are vectors, not words: a track
    says how far they moved what the one who heard them makes of its observation, as a share of its length.
    Raises ValueError if `max_steps` is below 1.

    Args:
        policy: Who plays.
        env_config: Where.
        seed: Of the episode.
        max_steps: Where to cut a long one.
        on_step: Called with how much is done, of how much.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: at least 1 step is shown")
    training, (env, drawn), film = policy.training, drawing(env_config.make), Film()
    policy.eval()
    try:
        agents, steps = list(env.possible_agents), []
        told_of = ["reward", "value", *(["moved by what it heard"] if policy.config.graph_rounds else [])]
        tracks: dict[str, list[float | None]] = {
            f"{agent}/{name}": [] for agent in agents for name in told_of
        }
        observations, _ = env.reset(seed=seed)
        state = policy.initial_state(1)
        while env.agents and len(steps) < max_steps:
            place = film.keep(picture(env, "")) if drawn else None
            seen = from_leaves({key: torch.as_tensor(leaf) for key, leaf in batch(env, observations).items()})
            alive = torch.tensor([[agent in env.agents for agent in agents]])
            did, looks = policy.watched(seen, alive, state)
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
                numbers = rewards.get(agent), did.value[0, index], looks[index].moved[0]
                for name, number in zip(told_of, numbers, strict=False):
                    # Who is gone may be paid for its last step, and judges and hears nothing.
                    known = name == "reward" or agent in living
                    tracks[f"{agent}/{name}"].append(_finite(number) if known else None)
                recalled = looks[index].recalled
                for name, strength in ({} if recalled is None else recalled.written).items():
                    row = tracks.setdefault(f"{agent}/{name}", [])
                    row.append(_finite(strength[0]) if agent in living else None)
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


def _heard(agents: list[str], looks: list[AgentLook], living: set[str]) -> dict[str, float]:
    pairs = {
        f"{agent} hears {other}": min(float(share), 1.0)
        for agent, look in zip(agents, looks, strict=True)
        if look.heard is not None and agent in living
        for other, share in zip(agents, look.heard[0, -1], strict=True)
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

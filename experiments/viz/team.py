"""Trace of one episode of a team: map, attention between agents, memory reads, rewards and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from scrubjay.agents.rl.observations import from_leaves
from scrubjay.agents.teams.network import AgentTrace
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.reports.episode import make_rendering_env, render_frame
from scrubjay.experiments.reports.team_episode import batch_observations
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.viz.episode import PictureStore, format_value
from scrubjay.experiments.viz.trace import Recall, Step, Trace

_MOST_HEARD = 24
"""Maximum number of agent pairs per step; pairs with the largest attention are shown."""


@torch.no_grad()
def trace_team(
    policy: TeamPolicy,
    env_config: TeamEnvConfig,
    seed: int = 1,
    max_steps: int = 500,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Trace:
    """Play one episode with the most likely action of every agent, and return its trace.

    `Step.options` holds attention weights of the last graph round, with names such as "agent_0 hears
    agent_1". Names of tracks and recalls start with the name of the agent. Agents exchange vectors as
    messages: one track per agent shows how much the received messages change the agent's features, relative
    to the norm of the features.
    Raises ValueError if `max_steps` is below 1.

    Args:
        policy: Policy of the team.
        env_config: Environment of the episode.
        seed: Seed of the episode.
        max_steps: Maximum number of steps.
        on_step: Callback with the completed and the total amount of work.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: must be at least 1")
    training, picture_store = policy.training, PictureStore()
    env, has_pictures = make_rendering_env(env_config.make)
    policy.eval()
    try:
        agents, steps = list(env.possible_agents), []
        track_names = ["reward", "value", *(["change by messages"] if policy.config.graph_rounds else [])]
        tracks: dict[str, list[float | None]] = {
            f"{agent}/{name}": [] for agent in agents for name in track_names
        }
        observations, _ = env.reset(seed=seed)
        state = policy.initial_state(1)
        while env.agents and len(steps) < max_steps:
            place = picture_store.add(render_frame(env, "")) if has_pictures else None
            batch = from_leaves(
                {key: torch.as_tensor(leaf) for key, leaf in batch_observations(env, observations).items()}
            )
            alive = torch.tensor([[agent in env.agents for agent in agents]])
            output, agent_traces = policy.step_with_traces(batch, alive, state)
            state, actions = output.state, policy.env_actions(output.action)[0]
            agent_actions = {a: action for a, action in zip(agents, actions, strict=True) if a in env.agents}
            living = set(agent_actions)
            steps.append(
                Step(
                    len(steps),
                    place,
                    text=""
                    if has_pictures
                    else "; ".join(f"{a} {format_value(observations[a])}" for a in agent_actions),
                    choice="; ".join(
                        f"{agent} {format_value(action)}" for agent, action in agent_actions.items()
                    ),
                    options=_select_hearing_weights(agents, agent_traces, living),
                    recalls=_collect_recalls(agents, agent_traces, living),
                )
            )
            observations, rewards, *_ = env.step(agent_actions)
            for index, agent in enumerate(agents):
                numbers = rewards.get(agent), output.value[0, index], agent_traces[index].graph_change[0]
                for name, number in zip(track_names, numbers, strict=False):
                    # An agent that has left may still get a reward for its last step, but no value.
                    has_number = name == "reward" or agent in living
                    tracks[f"{agent}/{name}"].append(_finite_or_none(number) if has_number else None)
                memory_trace = agent_traces[index].recall
                for name, strength in ({} if memory_trace is None else memory_trace.writes).items():
                    row = tracks.setdefault(f"{agent}/{name}", [])
                    row.append(_finite_or_none(strength[0]) if agent in living else None)
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
        pictures=picture_store.pictures,
        tracks={name: tuple(row) for name, row in tracks.items()},
    )


def _select_hearing_weights(
    agents: list[str], traces: list[AgentTrace], living: set[str]
) -> dict[str, float]:
    pairs = {
        f"{agent} hears {other}": min(float(share), 1.0)
        for agent, trace in zip(agents, traces, strict=True)
        if trace.graph_weights is not None and agent in living
        for other, share in zip(agents, trace.graph_weights[0, -1], strict=True)
        if other != agent and other in living
    }
    most = sorted(pairs, key=lambda name: -pairs[name])[:_MOST_HEARD]
    return {name: share for name, share in pairs.items() if name in most}


def _collect_recalls(agents: list[str], traces: list[AgentTrace], living: set[str]) -> tuple[Recall, ...]:
    return tuple(
        Recall.from_weights(f"{agent}/{name}", read.steps[0], read.weights[0])
        for agent, trace in zip(agents, traces, strict=True)
        if trace.recall is not None and agent in living
        for name, read in trace.recall.reads.items()
    )


def _finite_or_none(number: Any) -> float | None:
    return None if number is None or not np.isfinite(number) else float(number)

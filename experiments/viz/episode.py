"""Trace of one episode of a policy or a team.

The trace of a policy has observations, actions, memory reads and recall density. The trace of a team has a
map, attention between agents, memory reads, rewards and values.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scrubjay.agents.rl.distributions import Categorical
from scrubjay.agents.rl.observations import check_observation, from_leaves, to_leaves, to_tensors
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.segment import Observation
from scrubjay.agents.teams.network import AgentTrace
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.faults import environment_errors
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.viz.density import recall_density
from scrubjay.experiments.viz.film import batch_observations, make_rendering_env, render_frame
from scrubjay.experiments.viz.trace import Recall, Step, Trace
from scrubjay.memory import name_of

_WIDEST = 640
"""Maximum width and height of a picture in pixels; larger pictures are scaled down."""
_MOST_NUMBERS = 32
"""Maximum number of values of an observation that is written as text."""


class PictureStore:
    """Pictures as data URLs, without duplicates."""

    def __init__(self) -> None:
        self._indices: dict[str, int] = {}

    def add(self, image: Image.Image) -> int:
        """Add a picture and return its index; equal pictures share an index."""
        image.thumbnail((_WIDEST, _WIDEST), Image.Resampling.NEAREST)
        file = io.BytesIO()
        # Lossless WebP takes a third of the size of a PNG.
        image.save(file, format="WEBP", lossless=True, method=2)
        address = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
        return self._indices.setdefault(address, len(self._indices))

    @property
    def pictures(self) -> tuple[str, ...]:
        """All pictures as data URLs, by index."""
        return tuple(self._indices)


@dataclass
class _EpisodeRecord:
    """Data of the episode up to now, one value per step."""

    picture_store: PictureStore = field(default_factory=PictureStore)
    steps: list[Step] = field(default_factory=list)
    recalls: list[list[Recall]] = field(default_factory=list)
    tracks: dict[str, list[float | None]] = field(default_factory=dict)
    encodings: list[Tensor] = field(default_factory=list)
    skip_features: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)

    def record(self, name: str, value: float) -> None:
        """Append the value of the latest step to the track `name`; earlier steps without a value get None."""
        row = self.tracks.setdefault(name, [])
        row += [None] * (len(self.steps) - 1 - len(row))
        row.append(float(value) if np.isfinite(value) else None)


def trace_episode(
    policy: Policy,
    env_config: EnvConfig,
    seed: int = 1,
    max_steps: int = 500,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Trace:
    """Play one episode with the most likely actions and return its trace; the policy is not changed.

    Raises ValueError if `max_steps` is below 1.

    Args:
        policy: Policy that acts.
        env_config: Environment of the episode.
        seed: Seed of the episode.
        max_steps: Maximum number of steps.
        on_step: Callback with the completed and the total amount of work.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: must be at least 1")
    training = policy.training
    policy.eval()
    env, has_pictures = make_rendering_env(env_config.make)
    try:
        episode = _play_episode(policy, env, env_config.id, seed, max_steps, has_pictures, on_step)
        rate = float(env.metadata.get("render_fps") or 10)
        _add_density(policy, episode, on_step)
    finally:
        env.close()
        policy.train(training)
    return Trace(
        kind="policy",
        title=f"{env_config.id}, episode {seed}",
        steps=tuple(
            dataclasses.replace(step, recalls=tuple(recalls))
            for step, recalls in zip(episode.steps, episode.recalls, strict=True)
        ),
        about=_describe(policy, env_config, episode),
        rate=rate,
        pictures=episode.picture_store.pictures,
        tracks={
            name: tuple(row + [None] * (len(episode.steps) - len(row)))
            for name, row in episode.tracks.items()
        },
    )


def _play_episode(
    policy: Policy,
    env: gymnasium.Env[Any, Any],
    env_name: str,
    seed: int,
    max_steps: int,
    has_pictures: bool,
    on_step: Callable[[int, int], None],
) -> _EpisodeRecord:
    episode, state, over = _EpisodeRecord(), policy.initial_state(1), False
    with environment_errors(env_name):
        observation, _ = env.reset(seed=seed)
        check_observation(env.observation_space, observation)
    while not over and len(episode.steps) < max_steps:
        place = episode.picture_store.add(render_frame(env, "")) if has_pictures else None
        batch = _build_batch(policy, observation)
        with torch.no_grad():
            encoding = policy.encoder(batch)
            memory_trace = policy.memory.recall(encoding, state)
            memory_output, state = policy.memory(encoding[:, None], state)
            features, view = memory_output[:, 0], None
            if policy.view is not None:
                view = policy.view(batch)
                features = features + view
                episode.skip_features.append(view[0])
            distribution = policy.actor(features)
            action = distribution.mode()
            value = float(policy.critic(features))
        episode.encodings.append(encoding[0])
        episode.actions.append(action[0])
        act = policy.env_actions(action)[0]
        episode.steps.append(
            Step(
                len(episode.steps),
                place,
                format_value(observation),
                format_value(act),
                _get_action_probabilities(policy, distribution),
            )
        )
        with environment_errors(env_name):
            observation, reward, terminated, truncated, _ = env.step(act)
            check_observation(env.observation_space, observation)
        episode.record("reward", float(reward))
        episode.record("value", value)
        if isinstance(policy.action_space, gymnasium.spaces.Discrete):
            episode.record("probability of the choice", float(distribution.log_prob(action).exp()))
        reads = {} if memory_trace is None else memory_trace.reads
        episode.recalls.append(
            [Recall.from_weights(name, read.steps[0], read.weights[0]) for name, read in reads.items()]
        )
        if memory_trace is not None:
            for name, strength in memory_trace.writes.items():
                episode.record(name, float(strength[0]))
        over = bool(terminated or truncated)
        on_step(len(episode.steps), 2 * max_steps)
    return episode


def _add_density(policy: Policy, episode: _EpisodeRecord, on_step: Callable[[int, int], None]) -> None:
    total = len(episode.steps)
    density = recall_density(
        policy,
        torch.stack(episode.encodings),
        torch.stack(episode.skip_features) if episode.skip_features else None,
        torch.stack(episode.actions),
        lambda done: on_step(total + done, 2 * total),
    )
    for name, rows in density.items():
        for t, (recalls, row) in enumerate(zip(episode.recalls, rows.numpy(), strict=True)):
            recalls.append(
                Recall.from_weights(f"recall density of the {name}", np.arange(t + 1), row[: t + 1])
            )


def _describe(policy: Policy, env_config: EnvConfig, episode: _EpisodeRecord) -> dict[str, str]:
    config = policy.config.memory
    total = sum(reward or 0 for reward in episode.tracks.get("reward", []))
    about = {"memory": name_of(config), "return": f"{total:g}", "steps": str(len(episode.steps))}
    if getattr(config, "stop_memory_gradient", False):
        about["recall density"] = "only within the window: stored values have no gradient"
    return about | {name: str(value) for name, value in env_config.kwargs.items()}


def _build_batch(policy: Policy, observation: Any) -> Observation:
    tensors = to_tensors(policy.observation_space, observation, policy.device)
    return from_leaves({key: leaf[None] for key, leaf in to_leaves(tensors).items()})


def _get_action_probabilities(policy: Policy, distribution: Any) -> dict[str, float]:
    """Return the probability of each action by name, or {} if the action space is not discrete."""
    space = policy.action_space
    if not isinstance(space, gymnasium.spaces.Discrete) or not isinstance(distribution, Categorical):
        return {}
    chances = distribution.log_probs[0].exp().clamp(max=1).tolist()
    return {str(int(space.start) + index): chance for index, chance in enumerate(chances)}


def format_value(value: Any) -> str:
    """Format a small observation or an action as text; large observations give an empty text."""
    if isinstance(value, dict):
        parts = {name: format_value(part) for name, part in value.items()}
        return "; ".join(f"{name} {part}" for name, part in parts.items() if part)
    if isinstance(value, tuple):
        return "; ".join(filter(None, map(format_value, value)))
    numbers = np.asarray(value)
    if numbers.size > _MOST_NUMBERS:
        return ""
    return np.array2string(numbers, precision=3, suppress_small=True, max_line_width=10_000)


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

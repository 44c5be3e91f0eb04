"""Trace of one episode of a policy or a team.

The trace of a policy has observations, actions, memory reads and recall density. The trace of a team has a
map, attention between agents, memory reads, rewards and values.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from scrubjay.agents.rl.distributions import Categorical
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.rollout import ActorInput, Choice, InputTensors
from scrubjay.agents.teams.network import AgentTrace
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.viz.density import recall_density
from scrubjay.experiments.viz.film import make_rendering_env, render_frame
from scrubjay.experiments.viz.one_env import OneEnv, OneTeam
from scrubjay.experiments.viz.trace import Recall, Step, Trace
from scrubjay.memory import name_of

_WIDEST = 640
"""Maximum width and height of a picture in pixels; larger pictures are scaled down."""
_MOST_NUMBERS = 32
"""Maximum number of values of an observation that is written as text."""
_MOST_HEARD = 24
"""Maximum number of agent pairs per step; pairs with the largest attention are shown."""


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


class _Tracer:
    """Base class of actors that take the most likely actions and record an episode, one value per step."""

    def __init__(self, policy: Any, envs: OneEnv | OneTeam, has_pictures: bool) -> None:
        self.policy, self._env, self._has_pictures = policy, envs.env, has_pictures
        self._state = policy.initial_state(1)
        self._tensors = InputTensors(policy.observation_space, policy.device)
        self.picture_store = PictureStore()
        self.steps: list[Step] = []
        self.tracks: dict[str, list[float | None]] = {}

    def _draw(self) -> int | None:
        """Add a picture of the environment and return its index; None if there are no pictures."""
        return self.picture_store.add(render_frame(self._env, "")) if self._has_pictures else None


class _PolicyTracer(_Tracer):
    """Tracer of a policy."""

    def __init__(self, policy: Policy, envs: OneEnv, has_pictures: bool) -> None:
        super().__init__(policy, envs, has_pictures)
        self._envs = envs
        self.recalls: list[list[Recall]] = []
        self.encodings: list[Tensor] = []
        self.skip_features: list[Tensor] = []
        self.actions: list[Tensor] = []

    @torch.no_grad()
    def act(self, inputs: ActorInput) -> Choice:
        """Record the observation and choose an action; the output are the numbers of the step by track."""
        policy, place = self.policy, self._draw()
        batch = self._tensors.observation(inputs)
        encoding = policy.encoder(batch)
        memory_trace = policy.memory.recall(encoding, self._state)
        memory_output, self._state = policy.memory(encoding[:, None], self._state)
        features = memory_output[:, 0]
        if policy.view is not None:
            view = policy.view(batch)
            features = features + view
            self.skip_features.append(view[0])
        distribution = policy.actor(features)
        action = distribution.mode()
        self.encodings.append(encoding[0])
        self.actions.append(action[0])
        actions = policy.env_actions(action)
        chances = _get_action_probabilities(policy, distribution)
        text = format_value(self._envs.observation)
        self.steps.append(Step(len(self.steps), place, text, format_value(actions[0]), chances))
        numbers = {"value": float(policy.critic(features))}
        if isinstance(policy.action_space, gymnasium.spaces.Discrete):
            numbers["probability of the choice"] = float(distribution.log_prob(action).exp())
        reads, writes = ({}, {}) if memory_trace is None else (memory_trace.reads, memory_trace.writes)
        self.recalls.append(
            [Recall.from_weights(name, read.steps[0], read.weights[0]) for name, read in reads.items()]
        )
        numbers |= {name: float(strength[0]) for name, strength in writes.items()}
        return Choice(actions, numbers)

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
    envs = OneEnv(env, env_config.id)
    episode = _PolicyTracer(policy, envs, has_pictures)
    try:
        for step in envs.play(episode, envs.reset(seed), max_steps):
            for name, number in {"reward": float(step.result.rewards[0]), **step.choice.output}.items():
                episode.record(name, number)
            on_step(len(episode.steps), 2 * max_steps)
        _add_density(policy, episode, on_step)
    finally:
        envs.close()
        policy.train(training)
    return Trace(
        kind="policy",
        title=f"{env_config.id}, episode {seed}",
        steps=tuple(
            dataclasses.replace(step, recalls=tuple(recalls))
            for step, recalls in zip(episode.steps, episode.recalls, strict=True)
        ),
        about=_describe(policy, env_config, episode),
        rate=envs.frames_per_second,
        pictures=episode.picture_store.pictures,
        tracks={
            name: tuple(row + [None] * (len(episode.steps) - len(row)))
            for name, row in episode.tracks.items()
        },
    )


def _add_density(policy: Policy, episode: _PolicyTracer, on_step: Callable[[int, int], None]) -> None:
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


def _describe(policy: Policy, env_config: EnvConfig, episode: _Tracer) -> dict[str, str]:
    config = policy.config.memory
    total = sum(reward or 0 for reward in episode.tracks.get("reward", []))
    about = {"memory": name_of(config), "return": f"{total:g}", "steps": str(len(episode.steps))}
    if getattr(config, "stop_memory_gradient", False):
        about["recall density"] = "only within the window: stored values have no gradient"
    return about | {name: str(value) for name, value in env_config.kwargs.items()}


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
    training = policy.training
    env, has_pictures = make_rendering_env(env_config.make)
    envs = OneTeam(env)
    tracer = _TeamTracer(policy, envs, has_pictures)
    policy.eval()
    try:
        for step in envs.play(tracer, envs.reset(seed), max_steps):
            tracer.record(step.choice.output, envs.rewards)
            on_step(len(tracer.steps), max_steps)
    finally:
        envs.close()
        policy.train(training)
    agents, steps, tracks = envs.agents, tracer.steps, tracer.tracks
    totals = {a: sum(reward or 0 for reward in tracks[f"{a}/reward"]) for a in agents}
    return Trace(
        kind="team",
        title=f"{env_config.id}, episode {seed}",
        steps=tuple(steps),
        about={"steps": str(len(steps)), **{f"return of {a}": f"{total:g}" for a, total in totals.items()}},
        rate=envs.frames_per_second,
        pictures=tracer.picture_store.pictures,
        tracks={name: tuple(row) for name, row in tracks.items()},
    )


class _TeamNumbers(NamedTuple):
    """Numbers of one step of a team, before its reward."""

    living: set[str]
    """Agents that acted."""
    values: Float[Tensor, "agents"]
    traces: list[AgentTrace]


class _TeamTracer(_Tracer):
    """Tracer of a team."""

    def __init__(self, policy: TeamPolicy, envs: OneTeam, has_pictures: bool) -> None:
        super().__init__(policy, envs, has_pictures)
        self._envs = envs
        names = ["reward", "value", *(["change by messages"] if policy.config.graph_rounds else [])]
        self._names = names
        self.tracks = {f"{agent}/{name}": [] for agent in envs.agents for name in names}

    def act(self, inputs: ActorInput) -> Choice:
        """Record the observations and messages and choose actions; the output is a `_TeamNumbers`."""
        agents, policy, place = self._envs.agents, self.policy, self._draw()
        batch = self._tensors.observation(inputs)
        traces: list[AgentTrace] = []
        alive = torch.as_tensor(inputs.alive)
        output = policy.step(batch, alive, self._state, deterministic=True, traces=traces)
        self._state, actions = output.state, policy.env_actions(output.action)
        choices = self._envs.living(actions[0])
        observations = {} if self._has_pictures else {name: self._envs.observation[name] for name in choices}
        text, choice = (
            "; ".join(f"{name} {format_value(value)}" for name, value in by_agent.items())
            for by_agent in (observations, choices)
        )
        living = set(choices)
        options = _select_hearing_weights(agents, traces, living)
        recalls = _collect_recalls(agents, traces, living)
        self.steps.append(Step(len(self.steps), place, text, choice, options, recalls))
        assert output.value is not None
        return Choice(actions, _TeamNumbers(living, output.value[0], traces))

    def record(self, numbers: _TeamNumbers, rewards: Mapping[str, Any]) -> None:
        """Append the numbers of the latest step to the tracks."""
        for agent, own_value, trace in zip(self._envs.agents, numbers.values, numbers.traces, strict=True):
            own = rewards.get(agent), own_value, trace.graph_change[0]
            own = dict(zip(self._names, own, strict=False))
            writes = {} if trace.recall is None else trace.recall.writes
            for name, number in (own | {name: strength[0] for name, strength in writes.items()}).items():
                # An agent that has left may still get a reward for its last step, but no value.
                has_number = number is not None and (name == "reward" or agent in numbers.living)
                value: Any = number if has_number else np.nan
                row = self.tracks.setdefault(f"{agent}/{name}", [])
                row.append(float(value) if np.isfinite(value) else None)


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

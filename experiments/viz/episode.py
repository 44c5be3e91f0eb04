"""Trace of one episode of a policy or a team.

The trace of a policy has observations, actions, memory reads and recall density. The trace of a team has a
map, attention between agents, memory reads, rewards and values.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from scrubjay.agents.rl.composite import select_row
from scrubjay.agents.rl.distributions import Categorical
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.rollout import ActorInput, Choice, InputTensors, RolloutStep
from scrubjay.agents.rl.segment import Observation
from scrubjay.agents.rl.trunk import Trunk
from scrubjay.agents.teams.network import AgentTrace
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.viz.density import recall_density
from scrubjay.experiments.viz.film import make_rendering_env, render_frame
from scrubjay.experiments.viz.one_env import OneEnv, OneTeam
from scrubjay.experiments.viz.trace import Recall, Step, Trace
from scrubjay.memory import State, name_of
from scrubjay.memory.contract.base import Recall as MemoryRecall

_WIDEST = 640
"""Maximum width and height of a picture in pixels; larger pictures are scaled down."""
_MOST_NUMBERS = 32
"""Maximum number of values of an observation that is written as text."""
_MOST_HEARD = 24
"""Maximum number of agent pairs per step; pairs with the largest attention are shown."""

OnStep = Callable[[int, int | None], None]
"""Callback with the completed and the total steps of a pass over the episode. The total is None while the
episode is played, since its length is unknown."""


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
        self.policy, self.envs, self._has_pictures = policy, envs, has_pictures
        self._state = policy.initial_state(1)
        self._tensors = InputTensors(policy.spaces.leaves, policy.device)
        self.picture_store = PictureStore()
        self.steps: list[Step] = []
        self.tracks: dict[str, dict[int, float]] = {}

    def _append(self, name: str, value: Any) -> None:
        """Set the value of the latest step in the track `name`, unless the value is not finite."""
        row = self.tracks.setdefault(name, {})
        if np.isfinite(value):
            row[len(self.steps) - 1] = float(value)

    def finish(self, on_step: OnStep) -> None:
        """Complete the steps after the end of the episode."""

    def _draw(self) -> int | None:
        """Add a picture of the environment and return its index; None if there are no pictures."""
        return self.picture_store.add(render_frame(self.envs.env, "")) if self._has_pictures else None


class _TrunkTracer:
    """Trunk of a policy with its memory state and its outputs in an episode."""

    def __init__(self, trunk: Trunk, state: State) -> None:
        self.trunk, self._state = trunk, state
        self.encodings: list[Tensor] = []
        self.skip_features: list[Tensor] = []
        self.recall: MemoryRecall | None = None
        """Items that the memory recalled at the latest step."""

    def step(self, observation: Observation) -> Tensor:
        """Process one observation and return the input of the heads."""
        encoding = self.trunk.encoder(observation)
        self.recall = self.trunk.memory.recall(encoding, self._state)
        memory_output, self._state = self.trunk.memory(encoding[:, None], self._state)
        self.encodings.append(encoding[0])
        if self.trunk.view is None:
            return memory_output[:, 0]
        view = self.trunk.view(observation)
        self.skip_features.append(view[0])
        return memory_output[:, 0] + view


class _PolicyTracer(_Tracer):
    """Tracer of a policy."""

    def __init__(self, policy: Policy, envs: OneEnv, has_pictures: bool) -> None:
        super().__init__(policy, envs, has_pictures)
        actor, critic = policy.split_state(self._state)
        self._actor = _TrunkTracer(policy, actor)
        trunk = policy.critic_trunk
        self._critic = None if trunk is None else _TrunkTracer(trunk, critic)
        self.actions: list[Tensor] = []
        self.masks: list[Tensor] = []

    @torch.no_grad()
    def act(self, inputs: ActorInput) -> Choice:
        """Record the observation and choose an action; the output are the numbers of the step by track."""
        policy, place = self.policy, self._draw()
        batch = policy.normalize(self._tensors.observation(inputs))
        features = self._actor.step(batch)
        memory_trace = self._actor.recall
        distribution = policy.distribution(features, batch)
        action = distribution.mode()
        if (mask := policy.select_mask(batch)) is not None:
            self.masks.append(mask[0])
        self.actions.append(action[0])
        actions = policy.env_actions(action)
        critic_features = features if self._critic is None else self._critic.step(batch)
        numbers, chances = {"value": float(policy.critic(critic_features))}, {}
        if isinstance(policy.action_space, gymnasium.spaces.Discrete):
            numbers["probability of the choice"] = float(distribution.log_prob(action).exp())
            if isinstance(distribution, Categorical):
                each = distribution.log_probs[0].exp().clamp(max=1).tolist()
                first = int(policy.action_space.start)
                chances = {str(number): chance for number, chance in enumerate(each, first)}
        text, recalls = format_value(self.envs.observation), _build_recalls(memory_trace)
        self.steps.append(
            Step(len(self.steps), place, text, format_value(select_row(actions, 0)), chances, recalls)
        )
        writes = {} if memory_trace is None else memory_trace.writes
        return Choice(actions, numbers | {name: float(strength[0]) for name, strength in writes.items()})

    def record(self, step: RolloutStep) -> None:
        """Append the numbers of the latest step to the tracks."""
        self._append("reward", float(step.result.rewards[0]))
        for name, number in step.choice.output.items():
            self._append(name, number)

    def finish(self, on_step: OnStep) -> None:
        """Add the recall density to the steps."""
        total, density = len(self.steps), {}
        parts = {("action", "value"): self._actor}
        if self._critic is not None:
            parts = {("action",): self._actor, ("value",): self._critic}
        for index, (names, part) in enumerate(parts.items()):
            density |= recall_density(
                self.policy,
                torch.stack(part.encodings),
                torch.stack(part.skip_features) if part.skip_features else None,
                torch.stack(self.actions),
                torch.stack(self.masks) if self.masks else None,
                # The gradient of a step passes through all steps before it, so work grows with the square.
                lambda done, before=index * total: on_step(before + done * done // total, len(parts) * total),
                part.trunk,
                names,
            )
        for name, rows in density.items():
            for t, row in enumerate(rows.numpy()):
                recall = Recall.from_weights(f"recall density of the {name}", np.arange(t + 1), row[: t + 1])
                self.steps[t] = dataclasses.replace(self.steps[t], recalls=(*self.steps[t].recalls, recall))

    def describe(self, env_config: EnvConfig) -> dict[str, str]:
        """Return the texts of the trace about its source."""
        config = self.policy.config.memory
        total = sum(self.tracks["reward"].values())
        about = {"memory": name_of(config), "return": f"{total:g}", "steps": str(len(self.steps))}
        if getattr(config, "stop_memory_gradient", False):
            about["recall density"] = "only within the window: stored values have no gradient"
        if env_config.wrappers:
            about["wrappers"] = ", ".join(env_config.wrappers)
        return about | {name: str(value) for name, value in env_config.kwargs.items()}


def trace_episode(
    policy: Policy,
    env_config: EnvConfig,
    seed: int = 1,
    max_steps: int = 500,
    on_step: OnStep = lambda done, total: None,
) -> Trace:
    """Play one episode with the most likely actions and return its trace; the policy is not changed.

    Raises ValueError if `max_steps` is below 1.

    Args:
        policy: Policy that acts.
        env_config: Environment of the episode.
        seed: Seed of the episode.
        max_steps: Maximum number of steps.
        on_step: Callback with the progress.
    """
    env, has_pictures = _open_env(env_config, max_steps)
    tracer = _PolicyTracer(policy, OneEnv(env, env_config.id), has_pictures)
    return _trace("policy", tracer, env_config, seed, max_steps, on_step)


def _open_env(env_config: EnvConfig | TeamEnvConfig, max_steps: int) -> tuple[Any, bool]:
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: must be at least 1")
    return make_rendering_env(env_config.make)


def _trace(
    kind: str,
    tracer: _PolicyTracer | _TeamTracer,
    env_config: Any,
    seed: int,
    max_steps: int,
    on_step: OnStep,
) -> Trace:
    """Play one episode with a tracer and return its trace."""
    envs, policy, steps = tracer.envs, tracer.policy, tracer.steps
    training = policy.training
    policy.eval()
    try:
        for step in envs.play(tracer, envs.reset(seed), max_steps):
            tracer.record(step)
            on_step(len(steps), None)
        tracer.finish(on_step)
    finally:
        envs.close()
        policy.train(training)
    return Trace(
        kind=kind,
        title=f"{env_config.id}, episode {seed}",
        steps=tuple(steps),
        about=tracer.describe(env_config),
        rate=envs.frames_per_second,
        pictures=tracer.picture_store.pictures,
        tracks={name: tuple(map(row.get, range(len(steps)))) for name, row in tracer.tracks.items()},
    )


def _build_recalls(trace: MemoryRecall | None, prefix: str = "") -> tuple[Recall, ...]:
    reads = {} if trace is None else trace.reads
    return tuple(
        Recall.from_weights(prefix + name, read.steps[0], read.weights[0]) for name, read in reads.items()
    )


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


def trace_team(
    policy: TeamPolicy,
    env_config: TeamEnvConfig,
    seed: int = 1,
    max_steps: int = 500,
    on_step: OnStep = lambda done, total: None,
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
        on_step: Callback with the progress.
    """
    env, has_pictures = _open_env(env_config, max_steps)
    tracer = _TeamTracer(policy, OneTeam(env, env_config.id), has_pictures)
    return _trace("team", tracer, env_config, seed, max_steps, on_step)


class _TeamNumbers(NamedTuple):
    """Numbers of one step of a team, before its reward."""

    living: set[str]
    """Agents that acted."""
    values: Float[Tensor, "agents"]
    traces: list[AgentTrace]


class _TeamTracer(_Tracer):
    """Tracer of a team."""

    envs: OneTeam

    def __init__(self, policy: TeamPolicy, envs: OneTeam, has_pictures: bool) -> None:
        super().__init__(policy, envs, has_pictures)
        self._names = ["reward", "value", *(["change by messages"] if policy.config.graph_rounds else [])]
        self.tracks = {f"{agent}/{name}": {} for agent in envs.agents for name in self._names}

    @torch.no_grad()
    def act(self, inputs: ActorInput) -> Choice:
        """Record the observations and messages and choose actions; the output is a `_TeamNumbers`."""
        agents, policy, place = self.envs.agents, self.policy, self._draw()
        batch = self._tensors.observation(inputs)
        traces: list[AgentTrace] = []
        alive = torch.as_tensor(inputs.alive)
        output = policy.step(batch, alive, self._state, deterministic=True, traces=traces)
        self._state, actions = output.state, policy.env_actions(output.action)
        choices = self.envs.living(actions[0])
        observations = {} if self._has_pictures else {name: self.envs.observation[name] for name in choices}
        text, choice = (
            "; ".join(f"{name} {format_value(value)}" for name, value in by_agent.items())
            for by_agent in (observations, choices)
        )
        living = set(choices)
        options = _select_hearing_weights(agents, traces, living)
        recalls = (
            recall
            for agent, trace in zip(agents, traces, strict=True)
            if agent in living
            for recall in _build_recalls(trace.recall, f"{agent}/")
        )
        self.steps.append(Step(len(self.steps), place, text, choice, options, tuple(recalls)))
        return Choice(actions, _TeamNumbers(living, output.value[0], traces))

    def record(self, step: RolloutStep) -> None:
        """Append the numbers of the latest step to the tracks."""
        numbers: _TeamNumbers = step.choice.output
        for agent, own_value, trace in zip(self.envs.agents, numbers.values, numbers.traces, strict=True):
            own = self.envs.rewards.get(agent), own_value, trace.graph_change[0]
            own = dict(zip(self._names, own, strict=False))
            writes = {} if trace.recall is None else trace.recall.writes
            for name, number in (own | {name: strength[0] for name, strength in writes.items()}).items():
                # An agent that has left may still get a reward for its last step, but no value.
                has_number = number is not None and (name == "reward" or agent in numbers.living)
                self._append(f"{agent}/{name}", number if has_number else np.nan)

    def describe(self, env_config: TeamEnvConfig) -> dict[str, str]:
        """Return the texts of the trace about its source."""
        about = {"steps": str(len(self.steps))}
        for agent in self.envs.agents:
            about[f"return of {agent}"] = f"{sum(self.tracks[f'{agent}/reward'].values()):g}"
        return about


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

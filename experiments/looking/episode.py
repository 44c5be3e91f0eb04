"""One episode of a policy as a trace: what it saw and did, what its memory read, and what hung on what."""

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
from scrubjay.agents.rl.observations import check_shown, from_leaves, to_leaves, to_tensors
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.segment import Observation
from scrubjay.experiments.looking.density import recall_density
from scrubjay.experiments.looking.trace import Recall, Step, Trace
from scrubjay.experiments.reports.episode import drawing, picture
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.playing import playing
from scrubjay.memory import name_of

_WIDEST = 640
"""Of a picture, in points: larger ones are made smaller."""
_MOST_NUMBERS = 32
"""Of an observation that is written out."""


class Film:
    """Pictures, each kept once."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def keep(self, image: Image.Image) -> int:
        """Return the number of a picture among those that there are."""
        image.thumbnail((_WIDEST, _WIDEST), Image.Resampling.NEAREST)
        file = io.BytesIO()
        # A third of a PNG, and the same points.
        image.save(file, format="WEBP", lossless=True, method=2)
        address = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
        return self._places.setdefault(address, len(self._places))

    @property
    def pictures(self) -> tuple[str, ...]:
        """All of them, as addresses that hold their data."""
        return tuple(self._places)


@dataclass
class _Lived:
    """What happened so far, a value for each step."""

    film: Film = field(default_factory=Film)
    steps: list[Step] = field(default_factory=list)
    recalled: list[list[Recall]] = field(default_factory=list)
    tracks: dict[str, list[float | None]] = field(default_factory=dict)
    encoded: list[Tensor] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)

    def note(self, name: str, value: float) -> None:
        """Put a number down for the newest step; of steps without one there is None."""
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
    """Play one episode, taking the likeliest actions, and return its trace; the policy is not changed.

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
    training = policy.training
    policy.eval()
    env, drawn = drawing(env_config.make)
    try:
        lived = _live(policy, env, env_config.id, seed, max_steps, drawn, on_step)
        rate = float(env.metadata.get("render_fps") or 10)
        _add_density(policy, lived, on_step)
    finally:
        env.close()
        policy.train(training)
    return Trace(
        kind="policy",
        title=f"{env_config.id}, episode {seed}",
        steps=tuple(
            dataclasses.replace(step, recalled=tuple(recalls))
            for step, recalls in zip(lived.steps, lived.recalled, strict=True)
        ),
        about=_about(policy, env_config, lived),
        rate=rate,
        pictures=lived.film.pictures,
        tracks={
            name: tuple(row + [None] * (len(lived.steps) - len(row))) for name, row in lived.tracks.items()
        },
    )


def _live(
    policy: Policy,
    env: gymnasium.Env[Any, Any],
    env_name: str,
    seed: int,
    max_steps: int,
    drawn: bool,
    on_step: Callable[[int, int], None],
) -> _Lived:
    lived, state, over = _Lived(), policy.initial_state(1), False
    with playing(env_name):
        observation, _ = env.reset(seed=seed)
        check_shown(env.observation_space, observation)
    while not over and len(lived.steps) < max_steps:
        place = lived.film.keep(picture(env, "")) if drawn else None
        batch = _one_row(policy, observation)
        with torch.no_grad():
            encoded = policy.encoder(batch)
            recalled = policy.memory.recalled(encoded, state)
            remembered, state = policy.memory(encoded[:, None], state)
            features, view = remembered[:, 0], None
            if policy.view is not None:
                view = policy.view(batch)
                features = features + view
                lived.seen.append(view[0])
            distribution = policy.actor(features)
            action = distribution.mode()
            value = float(policy.critic(features))
        lived.encoded.append(encoded[0])
        lived.actions.append(action[0])
        act = policy.env_actions(action)[0]
        lived.steps.append(
            Step(len(lived.steps), place, told(observation), told(act), _options(policy, distribution))
        )
        with playing(env_name):
            observation, reward, terminated, truncated, _ = env.step(act)
            check_shown(env.observation_space, observation)
        lived.note("reward", float(reward))
        lived.note("value", value)
        if isinstance(policy.action_space, gymnasium.spaces.Discrete):
            lived.note("probability of the choice", float(distribution.log_prob(action).exp()))
        reads = {} if recalled is None else recalled.reads
        lived.recalled.append(
            [Recall.of(name, read.steps[0], read.weights[0]) for name, read in reads.items()]
        )
        if recalled is not None:
            for name, strength in recalled.written.items():
                lived.note(name, float(strength[0]))
        over = bool(terminated or truncated)
        on_step(len(lived.steps), 2 * max_steps)
    return lived


def _add_density(policy: Policy, lived: _Lived, on_step: Callable[[int, int], None]) -> None:
    total = len(lived.steps)
    density = recall_density(
        policy,
        torch.stack(lived.encoded),
        torch.stack(lived.seen) if lived.seen else None,
        torch.stack(lived.actions),
        lambda done: on_step(total + done, 2 * total),
    )
    for name, rows in density.items():
        for t, (recalls, row) in enumerate(zip(lived.recalled, rows.numpy(), strict=True)):
            recalls.append(Recall.of(f"recall density of the {name}", np.arange(t + 1), row[: t + 1]))


def _about(policy: Policy, env_config: EnvConfig, lived: _Lived) -> dict[str, str]:
    config = policy.config.memory
    total = sum(reward or 0 for reward in lived.tracks.get("reward", []))
    told = {"memory": name_of(config), "return": f"{total:g}", "steps": str(len(lived.steps))}
    if getattr(config, "stop_memory_gradient", False):
        told["recall density"] = "of the window alone: what is stored is cut from the graph"
    return told | {name: str(value) for name, value in env_config.kwargs.items()}


def _one_row(policy: Policy, observation: Any) -> Observation:
    seen = to_tensors(policy.observation_space, observation, policy.device)
    return from_leaves({key: leaf[None] for key, leaf in to_leaves(seen).items()})


def _options(policy: Policy, distribution: Any) -> dict[str, float]:
    """Return how likely each action was, where one of some is chosen."""
    space = policy.action_space
    if not isinstance(space, gymnasium.spaces.Discrete) or not isinstance(distribution, Categorical):
        return {}
    chances = distribution.log_probs[0].exp().clamp(max=1).tolist()
    return {str(int(space.start) + index): chance for index, chance in enumerate(chances)}


def told(value: Any) -> str:
    """Return a small observation or an action in words; of a large one nothing."""
    if isinstance(value, dict):
        parts = {name: told(part) for name, part in value.items()}
        return "; ".join(f"{name} {part}" for name, part in parts.items() if part)
    if isinstance(value, tuple):
        return "; ".join(filter(None, map(told, value)))
    numbers = np.asarray(value)
    if numbers.size > _MOST_NUMBERS:
        return ""
    return np.array2string(numbers, precision=3, suppress_small=True, max_line_width=10_000)

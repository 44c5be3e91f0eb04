"""Recording of one episode of a policy as an animated GIF or a video."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from scrubjay.agents.rl.observations import check_observation
from scrubjay.agents.rl.policy import Policy
from scrubjay.experiments.reports.film import check_encoder, write_mp4
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.errors import environment_errors

E = TypeVar("E")
FORMATS = (".gif", ".mp4")
"""Supported file name endings of a recording."""


def play(
    env_config: EnvConfig, out: Path | str, policy: Policy | None = None, seed: int = 0, max_steps: int = 500
) -> tuple[int, float]:
    """Record one episode to a GIF or MP4; return the number of frames and the return of the episode.

    Actions are random without a policy. Raises ValueError if the environment cannot render pictures, and
    ImportError for an MP4 without the extra `film`.
    """
    env = env_config.make(render_mode="rgb_array")
    try:
        act = _random_actor(env, seed) if policy is None else _actor(policy)
        with environment_errors(env_config.id):
            observation, _ = env.reset(seed=seed)
            check_observation(env.observation_space, observation)
        frames, total, start, over = [render_frame(env, env_config.id)], 0.0, True, False
        while not over and len(frames) <= max_steps:
            action = act(observation, start)
            with environment_errors(env_config.id):
                observation, reward, terminated, truncated, _ = env.step(action)
                check_observation(env.observation_space, observation)
            frames.append(render_frame(env, env_config.id))
            total, start, over = total + float(reward), False, bool(terminated or truncated)
        per_second = float(env.metadata.get("render_fps") or 10)
    finally:
        env.close()
    write_episode(frames, out, per_second)
    return len(frames), total


def check_film(out: Path, max_steps: int) -> None:
    """Check the output options before an episode is played.

    Raises ValueError for an unknown file name ending or `max_steps` below 1, and ImportError for an MP4
    without the extra `film`.
    """
    if out.suffix.lower() not in FORMATS:
        raise ValueError(
            f"out={str(out)!r}: the ending must be .gif or .mp4; name it {out.stem}.gif or {out.stem}.mp4"
        )
    if out.suffix.lower() == ".mp4":
        check_encoder()
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: must be at least 1")


def write_episode(frames: list[Image.Image], out: Path | str, per_second: float) -> None:
    """Write pictures as an MP4 or GIF, by file name extension. The last picture stays for one second."""
    write = write_mp4 if Path(out).suffix.lower() == ".mp4" else write_gif
    write(frames, out, per_second)


def write_gif(frames: list[Image.Image], out: Path | str, per_second: float) -> None:
    """Write pictures as a looping GIF. The last picture stays for one second."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    # Each frame lasts at least 20 ms (viewers slow shorter ones down), the last one a second.
    durations = [max(20, round(1000 / per_second))] * (len(frames) - 1) + [1000]
    frames[0].save(out, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _actor(policy: Policy) -> Callable[[Any, bool], Any]:
    state = None

    def act(observation: Any, start: bool) -> Any:
        nonlocal state
        action, state = policy.act(observation, state, start)
        return action

    return act


def _random_actor(env: Any, seed: int) -> Callable[[Any, bool], Any]:
    env.action_space.seed(seed)
    return lambda observation, start: env.action_space.sample()


def make_rendering_env(make: Callable[..., E]) -> tuple[E, bool]:
    """Build an environment with `make`; return the environment, and True if it renders pictures."""
    try:
        env = make(render_mode="rgb_array")
    except ValueError:
        return make(), False
    return env, getattr(env, "render_mode", "rgb_array") == "rgb_array"


def render_frame(env: Any, name: str) -> Image.Image:
    """Return the rendered picture. Raises ValueError, naming the environment, if it does not render."""
    try:
        pixels = env.render()
    except NotImplementedError:
        pixels = None
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 3:
        raise ValueError(f"environment {name!r} does not render pictures; it needs render_mode 'rgb_array'")
    return Image.fromarray(pixels.astype(np.uint8))

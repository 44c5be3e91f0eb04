"""Watch a policy: one episode as an animated GIF, or as a film."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from scrubjay.agents.rl.observations import check_shown
from scrubjay.agents.rl.policy import Policy
from scrubjay.experiments.reports.film import check_encoder, write_mp4
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.playing import playing

E = TypeVar("E")
FORMATS = (".gif", ".mp4")
"""What an episode is written as, by the ending of a file's name."""


def play(
    env_config: EnvConfig, out: Path | str, policy: Policy | None = None, seed: int = 0, max_steps: int = 500
) -> tuple[int, float]:
    """Write one episode, by the policy or at random, to a GIF or MP4; return its frames and the return.

    Raises ValueError if the environment cannot render pictures, ImportError on a film without the extra.
    """
    env = env_config.make(render_mode="rgb_array")
    try:
        act = _random_actor(env, seed) if policy is None else _actor(policy)
        with playing(env_config.id):
            observation, _ = env.reset(seed=seed)
            check_shown(env.observation_space, observation)
        frames, total, start, over = [picture(env, env_config.id)], 0.0, True, False
        while not over and len(frames) <= max_steps:
            action = act(observation, start)
            with playing(env_config.id):
                observation, reward, terminated, truncated, _ = env.step(action)
                check_shown(env.observation_space, observation)
            frames.append(picture(env, env_config.id))
            total, start, over = total + float(reward), False, bool(terminated or truncated)
        per_second = float(env.metadata.get("render_fps") or 10)
    finally:
        env.close()
    write_episode(frames, out, per_second)
    return len(frames), total


def check_film(out: Path, max_steps: int) -> None:
    """Raise ValueError, before an episode is played, if it cannot be written like that.

    Raises ImportError without what a film needs.
    """
    if out.suffix.lower() not in FORMATS:
        raise ValueError(
            f"out={str(out)!r}: an episode is written as an animated GIF or a film; name it {out.stem}.gif "
            f"or {out.stem}.mp4"
        )
    if out.suffix.lower() == ".mp4":
        check_encoder()
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: at least 1 step is shown")


def write_episode(frames: list[Image.Image], out: Path | str, per_second: float) -> None:
    """Write pictures as the film or animation that the file's name asks for, at rest on the last one."""
    write = write_mp4 if Path(out).suffix.lower() == ".mp4" else write_gif
    write(frames, out, per_second)


def write_gif(frames: list[Image.Image], out: Path | str, per_second: float) -> None:
    """Write pictures as an animation that goes round for ever and rests a second on the last one."""
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


def drawing(make: Callable[..., E]) -> tuple[E, bool]:
    """Return the environment that `make(render_mode=)` makes, and whether it draws pictures."""
    try:
        env = make(render_mode="rgb_array")
    except ValueError:
        return make(), False
    return env, getattr(env, "render_mode", "rgb_array") == "rgb_array"


def picture(env: Any, name: str) -> Image.Image:
    """Return what the environment, called `name` in the error, renders. Raises ValueError if it does not."""
    try:
        pixels = env.render()
    except NotImplementedError:
        pixels = None
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 3:
        raise ValueError(f"environment {name!r} renders no pictures (render_mode 'rgb_array')")
    return Image.fromarray(pixels.astype(np.uint8))

"""Recording of one episode of a policy or a team as an animated GIF or a video."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pettingzoo import ParallelEnv
from PIL import Image

from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.rollout import Actor, PolicyActor
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.cli.arguments import UsageError, did_you_mean
from scrubjay.experiments.files import replacement, write_atomically
from scrubjay.experiments.recipes.overrides import find_env, with_env_settings
from scrubjay.experiments.runs.checkpoint import LATEST
from scrubjay.experiments.runs.evaluation import Rule, build_team_actor
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.random_actions import RandomActor, RandomRule
from scrubjay.experiments.tasks.teams import KNOWN_TEAMS, TeamEnvConfig, find_known_team
from scrubjay.experiments.viz.one_env import OneEnv, OneTeam

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
    envs = OneEnv(env_config.make(render_mode="rgb_array"), env_config.id)
    try:
        actor: Actor = (
            RandomActor(envs.env.action_space, seed)
            if policy is None
            else PolicyActor(policy, deterministic=True)
        )
        inputs, total = envs.reset(seed), 0.0
        frames = [render_frame(envs.env, env_config.id)]
        for step in envs.play(actor, inputs, max_steps):
            frames.append(render_frame(envs.env, env_config.id))
            total += float(step.result.rewards[0])
    finally:
        envs.close()
    write_episode(frames, out, envs.frames_per_second)
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
    film = io.BytesIO()
    frames[0].save(film, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    write_atomically(Path(out), film.getvalue())


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


def check_encoder() -> None:
    """Raise ImportError, with installation instructions, if ffmpeg is missing."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"an MP4 needs ffmpeg from the extra `film` ({str(error).strip()}): pip install 'scrubjay[film]'"
        ) from error


def write_mp4(frames: Sequence[Image.Image], out: Path | str, per_second: float) -> None:
    """Write pictures as an MP4. The last picture stays for one second.

    A picture with an odd height or width is padded by one pixel, since the format needs even sizes. Raises
    ImportError if ffmpeg is missing, and OSError if the file cannot be written.
    """
    check_encoder()
    import imageio_ffmpeg

    pictures = [np.asarray(frame.convert("RGB")) for frame in frames]
    # Colors are stored per 2 by 2 pixels, so sizes must be even.
    height, width = (-(-max(picture.shape[axis] for picture in pictures) // 2) * 2 for axis in (0, 1))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    # An invalid path raises a short OSError here, unlike in ffmpeg.
    with replacement(Path(out)) as new:
        film = imageio_ffmpeg.write_frames(
            os.path.abspath(new),  # ffmpeg would parse names that start with - or data: differently
            (width, height),
            fps=per_second,  # pyright: ignore[reportArgumentType]  (ffmpeg also accepts fractions)
            quality=8,
            macro_block_size=2,
            ffmpeg_log_level="quiet",
            output_params=["-f", "mp4"],  # the name of the new file does not say it
        )
        film.send(None)
        try:
            for picture in [*pictures, *[pictures[-1]] * (max(1, round(per_second)) - 1)]:
                # Pad by repeating the last row and column; the film needs a contiguous picture.
                missing = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
                film.send(np.ascontiguousarray(np.pad(picture, missing, mode="edge")))
        except OSError as error:
            raise _incomplete_film_error(out) from error
        finally:
            film.close()
        if b"moov" not in _read_box_names(new):  # the index is written last
            raise _incomplete_film_error(out)


def _read_box_names(path: Path | str) -> list[bytes]:
    """Return the names of the top-level boxes of an MP4; a box starts with its size and its name."""
    parts = []
    with open(path, "rb") as file:
        while len(head := file.read(8)) == 8 and (size := int.from_bytes(head[:4])) >= 8:
            parts.append(head[4:])
            file.seek(size - 8, os.SEEK_CUR)
    return parts


def _incomplete_film_error(out: Path | str) -> OSError:
    return OSError(errno.EIO, "ffmpeg could not finish the video; check the free disk space", str(out))


@dataclass(frozen=True)
class TeamSetup:
    """Environment and player of a recording."""

    env: TeamEnvConfig
    """Environment of the team."""
    player: TeamPolicy | Rule
    """Policy or rule that selects the actions of all agents."""
    folder: Path
    """Default output directory: the run directory, or the current directory."""


@dataclass(frozen=True)
class TeamEpisode:
    """Result of an episode."""

    frames: int
    """Number of pictures written."""
    returns: dict[str, float]
    """Sum of rewards of each agent."""
    measures: dict[str, float]
    """Measures of the environment by name, such as "sum_rate_bps"; means over the steps of the episode."""


def set_up_team(
    source: str,
    policy: str | None,
    preset: str | None,
    settings: Sequence[str],
    seed: int,
    trust: bool = False,
    checkpoint: str = LATEST,
) -> TeamSetup | None:
    """Return environment and player for a team run, a recipe or a team's name; None for a single agent.

    Args:
        source: Run directory, recipe, name in `KNOWN_TEAMS`, or `module:callable` of a team. A run also sets
            the default policy.
        policy: Directory of a team run, "random", or a rule of the environment; None for the default.
        preset: Preset of the environment; it replaces the settings of the run or recipe.
        settings: Environment settings `name=value`.
        seed: Seed of random actions.
        trust: Trust the run, as in `Run.load`.
        checkpoint: Checkpoint of the run with the policy, as in `Run.load`.

    Raises:
        UsageError: for an unknown policy, a run of a single agent, or an invalid setting.
        ValueError: if the policy does not match the environment.
    """
    known_env = KNOWN_TEAMS.get(source)
    run = None if known_env else _load_team_run(source, trust, checkpoint)
    if run is None and known_env is None and Path(source).exists():
        return None
    env = find_env(source, settings) if run is None else _task(run).env
    if not isinstance(env, TeamEnvConfig):
        return None
    policy_run = run
    if policy is not None:
        policy_run = _load_team_run(policy, trust, checkpoint)
        if known_env is not None and policy_run is not None:
            env = _task(policy_run).env
    if policy_run is None and checkpoint != LATEST:
        raise UsageError(f"--checkpoint {checkpoint}: it requires the policy of a run; omit the option")
    if preset is not None:
        if not find_known_team(env.id).presets:
            env_names = [name for name, teams in KNOWN_TEAMS.items() if teams.presets]
            raise UsageError(f"--preset is supported only by {' and '.join(env_names)}, not by {env.id}")
        env = TeamEnvConfig(env.id, {"preset": preset})
    env = with_env_settings(env, settings)
    player = _build_rule(policy, env, seed) if policy_run is None else policy_run.team_policy_for(env)
    return TeamSetup(env, player, Path() if run is None else run.path)


def play_team(
    env: ParallelEnv[Any, Any, Any],
    player: TeamPolicy | Rule,
    out: Path | str,
    seed: int = 0,
    max_steps: int = 500,
) -> TeamEpisode:
    """Record one episode of a team of identical agents to a GIF or MP4.

    The environment stays in its final state. Raises ValueError if the environment does not render pictures,
    or if `max_steps` is below 1.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: must be at least 1")
    name = str(getattr(env, "metadata", {}).get("name", type(env).__name__))
    envs = OneTeam(env, name)
    inputs = envs.reset(seed)
    frames = [render_frame(env, name)]
    returns = dict.fromkeys(env.possible_agents, 0.0)
    values_by_measure: dict[str, list[float]] = {}
    for step in envs.play(build_team_actor(player, env), inputs, max_steps):
        for agent, reward in envs.rewards.items():
            returns[agent] += float(reward)
        for measure, value in next(iter(step.result.infos.values()), {}).items():
            if isinstance(value, (int, float, np.integer, np.floating)):
                values_by_measure.setdefault(measure, []).append(float(value))
        frames.append(render_frame(env, name))
    write_episode(frames, out, envs.frames_per_second)
    return TeamEpisode(
        len(frames),
        returns,
        {measure: float(np.mean(values)) for measure, values in values_by_measure.items()},
    )


def _load_team_run(path: str, trust: bool, checkpoint: str) -> Run | None:
    """Load a team run; None if the directory does not exist or is not a team run."""
    run = Run.load(path, trust, checkpoint) if Path(path).exists() else None
    return run if run is not None and isinstance(run.config, TeamTaskConfig) else None


def _task(run: Run) -> TeamTaskConfig:
    assert isinstance(run.config, TeamTaskConfig)
    return run.config


def _build_rule(name: str | None, env: TeamEnvConfig, seed: int) -> Rule:
    team = find_known_team(env.id)
    builders: dict[str, Callable[[int], Rule]] = {"random": RandomRule, **team.rules()}
    name = name or team.default_rule
    if name not in builders:
        choices = f"{', '.join(builders)}, or the directory of a team run"
        raise UsageError(
            f"unknown policy {name!r}; choose from {choices}{did_you_mean(name, list(builders))}"
        )
    return builders[name](seed)

"""`scrubjay play`: one episode as a GIF or a film, by a trained policy, at random, or by a rule of thumb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scrubjay.experiments.reports.options import PlayOptions
from scrubjay.experiments.words.arguments import UsageError, parse, take_flag
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input, table

if TYPE_CHECKING:
    from scrubjay.experiments.reports.team_episode import Cast


def run(words: Sequence[str]) -> int:
    """`scrubjay play RUN|ENV_ID|RECIPE|TEAM [--out FILE.gif|FILE.mp4] [--set name=value]`."""
    remaining = list(words)
    settings = take_flag(remaining, "--set")
    options = parse(PlayOptions, remaining, "scrubjay play")
    from scrubjay.experiments.commands.loading import guarded

    with guarded(options.trust):
        return _play(options, settings)


def _play(options: PlayOptions, settings: list[str]) -> int:
    """Write an episode of who or what is named."""
    from scrubjay.experiments.commands.loading import load_agent
    from scrubjay.experiments.kinds.reinforcement import AgentConfig
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.recipes.overrides import with_settings
    from scrubjay.experiments.reports.episode import check_film, play
    from scrubjay.experiments.reports.team_episode import cast_team
    from scrubjay.experiments.tasks.environments import EnvConfig

    with bad_input():
        check_film(options.out or Path("episode.gif"), options.max_steps)
        cast = cast_team(options.what, options.policy, options.preset, settings, options.seed, options.trust)
    if cast is not None:
        return _play_team(cast, options)
    for flag in ("policy", "preset", "coverage"):
        if getattr(options, flag) is not None:
            raise UsageError(
                f"--{flag} is of teams, which {options.what} is not; as in: scrubjay play {_teams()}"
            )
    folder, policy = Path(), None
    with bad_input():
        if Path(options.what).exists():
            trained, config = load_agent(Path(options.what), options.trust)
            folder, env = trained.path, with_settings(config.env, settings)
            policy = trained.policy_in(env)
        else:
            recipe = RECIPES[options.what]() if options.what in RECIPES else None
            env = recipe.env if isinstance(recipe, AgentConfig) else EnvConfig(options.what, num_envs=1)
            env = with_settings(env, settings)
        out = options.out or folder / "episode.gif"
        frames, total = play(env, out, policy, options.seed, options.max_steps)
    print(one_line(f"{out}: {frames} frames, return {total:g}"))
    return 0


def _play_team(cast: Cast, options: PlayOptions) -> int:
    """Write an episode of a team, and of UAVs a map of what they cover."""
    from scrubjay.experiments.reports.coverage import plot_coverage
    from scrubjay.experiments.reports.team_episode import play_team

    with bad_input():
        env = cast.env.make(render_mode="rgb_array")
        world = getattr(env, "world", None)
        if options.coverage is not None and world is None:
            raise ValueError(f"--coverage is of {_teams()}, not of {cast.env.id}")
        out = options.out or cast.folder / "episode.gif"
        played = play_team(env, cast.actor, out, options.seed, options.max_steps)
        env.close()
        covered = [str(plot_coverage(world, options.coverage))] if options.coverage and world else []
    print(one_line(f"{out}: {played.frames} frames, return {sum(played.returns.values()):g}"))
    if played.measures:
        print(table([(name, f"{value:.4g}") for name, value in played.measures.items()]))
    print(*map(one_line, covered), sep="\n", end="\n" if covered else "")
    return 0


def _teams() -> str:
    from scrubjay.experiments.tasks.teams import KNOWN_TEAMS

    return " or ".join(KNOWN_TEAMS)

"""`scrubjay play`: record one episode of a trained policy, a random policy or a heuristic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from scrubjay.experiments.cli.arguments import UsageError, parse, take_flag
from scrubjay.experiments.cli.terminal import bad_input, table
from scrubjay.experiments.cli.untrusted_text import one_line

if TYPE_CHECKING:
    from scrubjay.experiments.viz.film import TeamSetup


@dataclass(frozen=True)
class PlayOptions:
    """Record one episode as a GIF or MP4, with a trained policy, random actions or a rule-based policy."""

    source: Positional[str]
    """Run directory, environment id, recipe (its environment is used), or uav."""
    out: Path | None = None
    """Output file, .gif or .mp4 (needs the extra `film`); default: episode.gif in the run directory, else in
    the current directory."""
    seed: int = 1
    """Seed of the episode."""
    max_steps: int = 500
    """Maximum number of steps of the episode."""
    policy: str | None = None
    """Policy of a team: a run directory or "random"; for uav also "static" or "follow". Default: the policy
    of the run; without a run "follow" for uav, "random" for other teams."""
    preset: str | None = None
    """Preset of uav: small, paper or city; default: the preset of the run or recipe, else small."""
    coverage: Path | None = None
    """Output file for a coverage map of uav at the end of the episode; its extension sets the format."""
    trust: bool = False
    """Trust the run directory: allow custom environments and pickled code."""


def run(argv: Sequence[str]) -> int:
    """`scrubjay play RUN|ENV_ID|RECIPE|TEAM [--out FILE.gif|FILE.mp4] [--set name=value]`."""
    remaining = list(argv)
    settings = take_flag(remaining, "--set")
    options = parse(PlayOptions, remaining, "scrubjay play")
    from scrubjay.experiments.commands.loading import memory_guard

    with memory_guard(options.trust):
        return _play(options, settings)


def _play(options: PlayOptions, settings: list[str]) -> int:
    """Record an episode of a run, environment, recipe or team."""
    from scrubjay.experiments.commands.loading import load_agent
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.recipes.overrides import with_env_settings
    from scrubjay.experiments.runs.reinforcement import TrainConfig
    from scrubjay.experiments.tasks.environments import EnvConfig
    from scrubjay.experiments.viz.film import check_film, play, set_up_team

    with bad_input():
        check_film(options.out or Path("episode.gif"), options.max_steps)
        cast = set_up_team(
            options.source, options.policy, options.preset, settings, options.seed, options.trust
        )
    if cast is not None:
        return _play_team(cast, options)
    for flag in ("policy", "preset", "coverage"):
        if getattr(options, flag) is not None:
            raise UsageError(
                f"--{flag} requires a team; {options.source} is not a team; choose for example {_teams()}"
            )
    folder, policy = Path(), None
    with bad_input():
        if Path(options.source).exists():
            trained_run, config = load_agent(Path(options.source), options.trust)
            folder, env = trained_run.path, with_env_settings(config.env, settings)
            policy = trained_run.policy_for(env)
        else:
            recipe = RECIPES[options.source]() if options.source in RECIPES else None
            env = recipe.env if isinstance(recipe, TrainConfig) else EnvConfig(options.source, num_envs=1)
            env = with_env_settings(env, settings)
        out = options.out or folder / "episode.gif"
        frames, total = play(env, out, policy, options.seed, options.max_steps)
    print(one_line(f"{out}: {frames} frames, return {total:g}"))
    return 0


def _play_team(cast: TeamSetup, options: PlayOptions) -> int:
    """Record an episode of a team; with --coverage also write a coverage map."""
    from scrubjay.experiments.viz.coverage import plot_coverage
    from scrubjay.experiments.viz.film import play_team

    with bad_input():
        env = cast.env.make(render_mode="rgb_array")
        world = getattr(env, "world", None)
        if options.coverage is not None and world is None:
            raise ValueError(f"--coverage requires {_teams()}; {cast.env.id} has no coverage map")
        out = options.out or cast.folder / "episode.gif"
        result = play_team(env, cast.actor, out, options.seed, options.max_steps)
        env.close()
        coverage_files = [str(plot_coverage(world, options.coverage))] if options.coverage and world else []
    print(one_line(f"{out}: {result.frames} frames, return {sum(result.returns.values()):g}"))
    if result.measures:
        print(table([(name, f"{value:.4g}") for name, value in result.measures.items()]))
    print(*map(one_line, coverage_files), sep="\n", end="\n" if coverage_files else "")
    return 0


def _teams() -> str:
    from scrubjay.experiments.tasks.teams import KNOWN_TEAMS

    return " or ".join(KNOWN_TEAMS)

"""Pictures of runs: `scrubjay plot`, `scrubjay play` and `scrubjay look`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from scrubjay.experiments.cli.arguments import parse
from scrubjay.experiments.cli.failures import UsageError, bad_input
from scrubjay.experiments.cli.untrusted_text import one_line, table
from scrubjay.experiments.commands.options import (
    RESPONSES_START,
    Checkpoint,
    EnvSettings,
    MaxSteps,
    ResponseSteps,
    Trust,
    check_latest,
)

if TYPE_CHECKING:
    from scrubjay.experiments.viz.film import TeamSetup


@dataclass(frozen=True)
class PlotOptions:
    """Plot learning curves: one panel per recipe, one curve per memory, mean and range over seeds."""

    runs: Positional[tuple[Path, ...]]
    """Run directories."""
    out: Path | None = None
    """Output file; its extension selects the format. Default: curve.png in the run directory, or in the
    current folder for several runs."""
    metric: str | None = None
    """Column of metrics.jsonl to plot; default: success, or return if there is no success rate."""
    against: Literal["steps", "bytes"] = "steps"
    """X axis: training steps, or the state size in bytes with one line per memory (sequence tasks only)."""
    trust: Trust = False


def plot(argv: Sequence[str]) -> int:
    """`scrubjay plot RUN [RUN ...] [--out FILE] [--metric NAME] [--against bytes]`."""
    options = parse(PlotOptions, argv, "scrubjay plot")
    from scrubjay.experiments.commands.loading import untrusted_limits
    from scrubjay.experiments.files import CURVE
    from scrubjay.experiments.runs.run import Run
    from scrubjay.experiments.viz.accuracy import plot_state
    from scrubjay.experiments.viz.curves import plot_runs

    with untrusted_limits(options.trust), bad_input():
        if not options.runs:
            raise ValueError("plot needs at least one run directory")
        runs = [Run.load(path, options.trust) for path in options.runs]
        out = options.out or (runs[0].path if len(runs) == 1 else Path()) / CURVE
        if options.against == "bytes":
            if options.metric is not None:
                raise ValueError(
                    "--metric and --against bytes cannot be combined; --metric is for curves against steps"
                )
            file = plot_state(runs, out)
        else:
            file = plot_runs(runs, out, options.metric)
        print(one_line(file))
    return 0


@dataclass(frozen=True)
class PlayOptions:
    """Record one episode as a GIF or MP4, with a trained policy, random actions or a rule-based policy."""

    source: Positional[str]
    """Run directory, environment id or module:callable, recipe (its environment is used), or the name or
    module:callable of a team."""
    out: Path | None = None
    """Output file, .gif or .mp4 (needs the extra `film`); default: episode.gif in the run directory, else in
    the current directory."""
    seed: int = 1
    """Seed of the episode."""
    max_steps: MaxSteps = 500
    policy: str | None = None
    """Policy of a team: a run directory or "random"; for a team with a coverage map also "static" or
    "follow". Default: the policy of the run; without a run "follow" if the team knows it, else "random"."""
    preset: str | None = None
    """Preset of a team: small, paper or city; default: the preset of the run or recipe, else small."""
    coverage: Path | None = None
    """Output file for a coverage map of the team at the end of the episode; its extension sets the format."""
    set: EnvSettings = ()
    wrap: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="WRAPPER")] = ()
    """Wrapper of the environment, as in train, such as TimeAwareObservation. Repeat the flag for several. The
    first one is the innermost."""
    checkpoint: Checkpoint = "latest"
    trust: Trust = False


def play(argv: Sequence[str]) -> int:
    """`scrubjay play RUN|ENV_ID|RECIPE|TEAM [--out FILE.gif|FILE.mp4] [--set name=value] [--wrap NAME]`."""
    options = parse(PlayOptions, argv, "scrubjay play")
    from scrubjay.experiments.commands.loading import untrusted_limits

    with untrusted_limits(options.trust):
        return _play(options)


def _play(options: PlayOptions) -> int:
    """Record an episode of a run, environment, recipe or team."""
    from scrubjay.experiments.commands.loading import load_agent
    from scrubjay.experiments.recipes.overrides import find_env, with_env_settings
    from scrubjay.experiments.tasks.environments import EnvConfig
    from scrubjay.experiments.viz.film import check_film, play, set_up_team

    with bad_input():
        check_film(options.out or Path("episode.gif"), options.max_steps)
        cast = set_up_team(
            options.source,
            options.policy,
            options.preset,
            options.set,
            options.seed,
            options.trust,
            options.checkpoint,
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
            if options.wrap:
                raise ValueError(
                    f"--wrap requires the name of an environment; the run {options.source} has its own"
                )
            trained_run, config = load_agent(Path(options.source), options.trust, options.checkpoint)
            folder, env = trained_run.path, with_env_settings(config.env, options.set)
            policy = trained_run.policy_for(env)
        else:
            check_latest(options.checkpoint, "it requires a run directory")
            env = find_env(options.source, options.set)
            assert isinstance(env, EnvConfig)
            env = with_env_settings(env, options.set)
            env = dataclasses.replace(env, wrappers=options.wrap or env.wrappers)
        out = options.out or folder / "episode.gif"
        frames, total = play(env, out, policy, options.seed, options.max_steps)
    print(one_line(f"{out}: {frames} frames, return {total:g}"))
    return 0


def _play_team(cast: TeamSetup, options: PlayOptions) -> int:
    """Record an episode of a team; with --coverage also write a coverage map."""
    if options.wrap:
        raise UsageError(f"--wrap requires a single agent; {options.source} is a team")
    from scrubjay.experiments.viz.coverage import plot_coverage
    from scrubjay.experiments.viz.film import make_rendering_env, play_team

    with bad_input():
        env, _ = make_rendering_env(cast.env.make)
        world = getattr(env, "world", None)
        if options.coverage is not None and world is None:
            raise ValueError(f"--coverage requires {_teams()}; {cast.env.id} has no coverage map")
        out = options.out or cast.folder / "episode.gif"
        result = play_team(env, cast.player, out, options.seed, options.max_steps)
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


@dataclass(frozen=True)
class LookOptions:
    """Visualize the memory of an agent: a page with each step of an episode and what the memory recalls."""

    source: Positional[str]
    """Run directory, or a trace file (.json)."""
    episode: int = 1
    """Random seed of the episode."""
    out: Path | None = None
    """Output file: a page (.html), a picture (.png, .pdf, .svg) or a trace (.json); default: look.html in the
    run directory, or in the current folder."""
    max_steps: MaxSteps = 500
    best_response: bool = False
    """For teams: train each agent alone while the other agents are fixed (best response), and show on the
    page by how much its return increases."""
    response_steps: ResponseSteps = 50_000
    set: EnvSettings = ()
    checkpoint: Checkpoint = "latest"
    trust: Trust = False


def look(argv: Sequence[str]) -> int:
    """`scrubjay look RUN|TRACE [--episode SEED] [--out FILE] [--set name=value] [--best-response]`."""
    options = parse(LookOptions, argv, "scrubjay look")
    from scrubjay.experiments.cli.arguments import parse_setting
    from scrubjay.experiments.commands.loading import untrusted_limits
    from scrubjay.experiments.runs.run import Run
    from scrubjay.experiments.viz.differences import BestResponses
    from scrubjay.experiments.viz.look import Look, check_format, look

    with untrusted_limits(options.trust), bad_input():
        folder = Path(options.source) if Path(options.source).is_dir() else Path()
        out = options.out or folder / "look.html"
        check_format(out)
        env_settings = dict(map(parse_setting, options.set))
        responses = None
        if options.best_response:
            check_latest(options.checkpoint, RESPONSES_START)
            responses = BestResponses.from_run(
                options.source, env_settings, options.response_steps, options.trust
            )
        what = options.source if responses is None else responses.run
        if Path(options.source).is_file():
            check_latest(options.checkpoint, "it requires a run directory")
        elif responses is None:
            what = Run.load(options.source, options.trust, options.checkpoint)
        page = look(what, options.episode, env_settings, options.max_steps, options.trust, progress=True)
        page.save(out)
        if responses is not None:  # best responses take minutes, so the page is written before and after
            page = Look(responses.add_to_trace(page.trace))
            page.save(out)
    print(one_line(f"{out}: {page.trace.title}, {len(page.trace.steps)} steps"))
    return 0

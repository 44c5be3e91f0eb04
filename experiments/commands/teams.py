"""What `scrubjay eval` and `scrubjay play` do with teams."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.recipes.overrides import with_settings
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.words.terminal import bad_input, table

if TYPE_CHECKING:
    from scrubjay.experiments.evaluation.policy import EvalOptions
    from scrubjay.experiments.reports.episode import PlayOptions
    from scrubjay.experiments.reports.team_episode import Cast


def evaluate(run: Run, config: TeamTaskConfig, settings: Sequence[str], options: EvalOptions) -> int:
    """Play episodes with a trained team, and report; with `best_response` also who could gain alone."""
    from scrubjay.experiments.evaluation.team import PolicyActor, evaluate_team

    with bad_input():
        env = with_settings(config.env, settings)
        config = dataclasses.replace(config, env=env)
        policy = run.team_policy_in(env)
        for name in ("episodes", "response_steps"):
            if getattr(options, name) < 1:
                raise ValueError(f"{name}={getattr(options, name)}: at least 1 is needed")
    seed = derive_seed(options.seed, "evaluation")
    actor = PolicyActor(policy, deterministic=not options.sample)
    summary = evaluate_team(actor, env, options.episodes, seed).summary()
    changed = ", ".join(f"{name}={value}" for name, value in env.kwargs.items())
    print(f"{config.recipe} {config.label} s{config.seed} at step {run.step:,}: {env.id} {changed}".rstrip())
    low, high = summary.pop("episodic_return_low"), summary.pop("episodic_return_high")
    print(f"return of the team  {summary.pop('episodic_return'):.3f}  [{low:.3f}, {high:.3f}]  95 % interval")
    print(f"length  {summary.pop('episodic_length'):.1f} steps, {summary.pop('episodes')} episodes")
    if summary:
        print(table([(name, f"{value:.4g}") for name, value in summary.items()]))
    if options.best_response:
        _print_gains(run, config, policy, options)
    return 0


def _print_gains(run: Run, config: TeamTaskConfig, policy: TeamPolicy, options: EvalOptions) -> None:
    from scrubjay.experiments.reports.equilibrium import gains, untrained
    from scrubjay.experiments.runs.checkpoint import load_training
    from scrubjay.experiments.runs.progress import ProgressDisplay

    assert run.latest is not None  # where the policy came from
    learned = load_training(run.latest)["learner"]
    for when, team, known in (("before training", untrained(config), None), ("after", policy, learned)):
        total = options.response_steps * team.num_agents
        with ProgressDisplay(f"best responses {when}", total, 0) as display:
            told = gains(
                team,
                config,
                options.response_steps,
                options.episodes,
                options.seed,
                known,
                lambda agent, done: display.update(agent * options.response_steps + done, {}),
            )
        print(
            f"{when}: epsilon {max(gain.gain for gain in told):.3f}, as far as {options.response_steps:,} steps find it"
        )
        rows = [
            (
                f"agent {agent}",
                f"return {gain.before:.3f}",
                f"gains {gain.gain:+.3f}",
                f"[{gain.low:+.3f}, {gain.high:+.3f}]",
            )
            for agent, gain in enumerate(told)
        ]
        print(table(rows))


def play(cast: Cast, options: PlayOptions) -> int:
    """Write an episode of a team, and of UAVs a map of what they cover."""
    from scrubjay.experiments.reports.coverage import plot_coverage
    from scrubjay.experiments.reports.team_episode import play_team

    with bad_input():
        env = cast.env.make(render_mode="rgb_array")
        world = getattr(env, "world", None)
        if options.coverage is not None and world is None:
            raise ValueError(f"--coverage is of uav, not of {cast.env.id}")
        out = options.out or cast.folder / "episode.gif"
        episode = play_team(env, cast.actor, out, options.seed, options.max_steps)
        env.close()
        covered = [str(plot_coverage(world, options.coverage))] if options.coverage and world else []
    print(f"{out}: {episode.frames} frames, return {sum(episode.returns.values()):g}")
    if episode.measures:
        print(table([(name, f"{value:.4g}") for name, value in episode.measures.items()]))
    print(*covered, sep="\n", end="\n" if covered else "")
    return 0

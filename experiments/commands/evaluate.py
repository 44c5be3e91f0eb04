"""`scrubjay eval`: episodes played with a trained policy, by a trained team, or a supervised run's test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tyro.conf import Positional

from scrubjay.experiments.evaluation import MAX_STEPS
from scrubjay.experiments.runs.progress import Lines
from scrubjay.experiments.words.arguments import parse, take_flag
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input, table

if TYPE_CHECKING:
    from scrubjay.agents.rl.policy import Policy
    from scrubjay.agents.teams.policy import TeamPolicy
    from scrubjay.experiments.evaluation.policy import EpisodeScores
    from scrubjay.experiments.kinds.reinforcement import AgentConfig
    from scrubjay.experiments.kinds.supervised import SupervisedConfig
    from scrubjay.experiments.kinds.team import TeamTaskConfig
    from scrubjay.experiments.looking.observability import Difference
    from scrubjay.experiments.run import Run
    from scrubjay.experiments.tasks.environments import EnvConfig
    from scrubjay.experiments.tasks.teams import TeamEnvConfig


@dataclass(frozen=True)
class EvalOptions:
    """Play whole episodes with a trained policy, or ask a supervised run the questions of its test anew.

    `--set name=value` changes the environment, `--memory name=value` a setting of the memory that needs no
    other weights, as `top_k` of one that was trained with all chunks.
    """

    run: Positional[Path]
    """The run's directory."""
    episodes: int = 100
    """How many."""
    seed: int = 1
    """Of the episodes, or of a supervised run's questions."""
    max_steps: int = MAX_STEPS
    """Most that each of up to 64 copies of the environment takes; episodes not over then are left out."""
    sample: bool = False
    """Draw actions at random from the policy instead of taking its favourite."""
    best_response: bool = False
    """Of a team: let each agent learn alone against the others, and tell what it gains; before training and
    after."""
    response_steps: int = 50_000
    """Environment steps each agent has for that."""
    full: Path | None = None
    """The run of one agent that was trained to do the same where nothing is hidden: tell the observability
    gap, its return minus this run's."""
    memoryless: Path | None = None
    """The run of one agent without a memory, on the same task, of which nothing should be hidden: tell the
    memory bias, this run's return minus its."""
    trust: bool = False
    """Run code that the directory names or has pickled: an environment that is none of Scrubjay's, say."""


def run(words: Sequence[str]) -> int:
    """`scrubjay eval RUN [--episodes N] [--set corridor_length=200] [--memory top_k=2]`."""
    remaining = list(words)
    settings, changes = (take_flag(remaining, flag) for flag in ("--set", "--memory"))
    options = parse(EvalOptions, remaining, "scrubjay eval", taken=("--set", "--memory"))
    from scrubjay.experiments.commands.loading import config_of_agent, guarded
    from scrubjay.experiments.kinds.supervised import SupervisedConfig
    from scrubjay.experiments.kinds.team import TeamTaskConfig
    from scrubjay.experiments.recipes.overrides import with_fields
    from scrubjay.experiments.run import Run

    with guarded(options.trust):
        with bad_input():
            trained = Run.load(options.run, options.trust)
            if changes:
                trained = trained.remembering(with_fields(trained.config.memory, changes))
        if isinstance(trained.config, SupervisedConfig):
            return _evaluate_supervised(trained, trained.config, words, changes, options.seed)
        if isinstance(trained.config, TeamTaskConfig):
            return _evaluate_team(trained, trained.config, settings, changes, options)
        return _evaluate_agent(trained, config_of_agent(trained), settings, changes, options)


def _evaluate_agent(
    run: Run, config: AgentConfig, settings: Sequence[str], changes: Sequence[str], options: EvalOptions
) -> int:
    """Play episodes with a trained policy, and report."""
    from scrubjay.experiments.evaluation.policy import evaluate
    from scrubjay.experiments.recipes.overrides import with_settings
    from scrubjay.experiments.runs.seeding import derive_seed

    with bad_input():
        if options.best_response:
            raise ValueError(f"--best-response is of teams; {run.path} is a run of one agent")
        if options.episodes == 1 and (options.full or options.memoryless):
            raise ValueError("episodes=1: a difference has an interval from 2 on")
        env = with_settings(config.env, settings)
        policy = run.policy_in(env)
        _check(options, "episodes", "max_steps")
    asked = (options.episodes, derive_seed(options.seed, "evaluation"), not options.sample, options.max_steps)
    with bad_input():
        others = _others(config, policy, settings, options)
        scores = evaluate(policy, env, *asked, _Played(options.episodes))
        summary = scores.summary()
    _print_heading(run, _words(env), changes)
    for name, words_for_it in (("episodic_return", "return "), ("success", "success")):
        if name in summary:
            low, high = summary[f"{name}_low"], summary[f"{name}_high"]
            print(f"{words_for_it}  {summary[name]:.3f}  [{low:.3f}, {high:.3f}]  95 % interval")
    if "reached" in summary:
        print(f"reached  {summary['reached']:.3f}  any choice, right or wrong")
    print(f"length   {summary['episodic_length']:.1f} steps, {_counted(summary['episodes'], options)}")
    for name, other in others.items():
        with bad_input():
            theirs = evaluate(other.policy, other.env, *asked, _Played(options.episodes))
            mean, low, high = other.difference(scores, theirs)
        print(
            one_line(f"{name}  {mean:+.3f}  [{low:+.3f}, {high:+.3f}]  95 % interval, against {other.path}")
        )
    return 0


def _evaluate_supervised(
    run: Run, config: SupervisedConfig, words: Sequence[str], changes: Sequence[str], seed: int
) -> int:
    """Ask questions of the test's sizes and of a seed, and report."""
    with bad_input():
        for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
            if flag not in ("--seed", "--memory", "--trust", "--no-trust"):
                raise ValueError(f"{flag} is of what acts; {run.path} is a run of kind {config.kind!r}")
        config = dataclasses.replace(config, seed=seed)
        model = run.model
    lines, right = Lines(), {}
    for done, sizes in enumerate(config.tests):
        lines(lambda done=done: f"{done} of {len(config.tests)} sizes")
        with bad_input():
            answered, questions = config.answered(model, *sizes)
        right[sizes] = f"{answered / questions:.3f}"
    counts, spans = (sorted(set(values)) for values in zip(*config.tests, strict=True))
    _print_heading(run, "questions answered right", changes)
    what, span = config.axis_labels
    rows = [[str(count), *(right[count, each] for each in spans)] for count in counts]
    print(table([[f"{what}, by {span}", *map(str, spans)], *rows]))
    return 0


class _Played:
    """Says now and then how many steps and episodes have been played."""

    def __init__(self, episodes: int) -> None:
        self._episodes, self._lines = episodes, Lines()

    def __call__(self, step: int, ended: int) -> None:
        self._lines(lambda: f"{step:,} steps each, {ended:,} of {self._episodes:,} episodes over")


def _check(options: EvalOptions, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)}: at least 1 is needed")
    if options.seed < 0:
        raise ValueError(f"seed={options.seed}: must not be negative")


def _counted(ended: float, options: EvalOptions) -> str:
    if ended == options.episodes:
        return f"{options.episodes} episodes"
    return (
        f"{ended:.0f} of {options.episodes} episodes: the others went on after {options.max_steps:,} steps "
        "(--max-steps)"
    )


class _Other(NamedTuple):
    """A run that this one is measured against."""

    path: Path
    policy: Policy
    env: EnvConfig
    difference: Callable[[EpisodeScores, EpisodeScores], Difference]
    """Of this one's scores and of the other's."""


def _others(
    config: AgentConfig, policy: Policy, settings: Sequence[str], options: EvalOptions
) -> dict[str, _Other]:
    """Return by the number's name the run that it is against.

    Raises ValueError where the number would mean nothing.
    """
    from scrubjay.experiments.commands.loading import load_agent
    from scrubjay.experiments.looking.observability import (
        check_bias,
        check_gap,
        memory_bias,
        observability_gap,
    )

    if settings and (options.full or options.memoryless):
        raise ValueError("--set would change one of two runs; leave it out with --full and --memoryless")
    others: dict[str, _Other] = {}
    if options.full is not None:
        other, its = load_agent(options.full, options.trust)
        acts = other.policy_in(its.env)
        check_gap(its, config, (acts.action_space, policy.action_space))
        others["observability gap"] = _Other(
            other.path, acts, its.env, lambda own, theirs: observability_gap(theirs, own)
        )
    if options.memoryless is not None:
        other, its = load_agent(options.memoryless, options.trust)
        check_bias(config, its)
        others["memory bias"] = _Other(other.path, other.policy_in(its.env), its.env, memory_bias)
    return others


def _evaluate_team(
    run: Run, config: TeamTaskConfig, settings: Sequence[str], changes: Sequence[str], options: EvalOptions
) -> int:
    """Play episodes with a trained team, and report; with `best_response` also who could gain alone."""
    from scrubjay.experiments.evaluation.team import PolicyActor, evaluate_team
    from scrubjay.experiments.recipes.overrides import with_settings
    from scrubjay.experiments.reports.equilibrium import of_trust_region
    from scrubjay.experiments.runs.seeding import derive_seed

    with bad_input():
        env = with_settings(config.env, settings)
        config = dataclasses.replace(config, env=env)
        policy = run.team_policy_in(env)
        env.make().close()
        if options.full or options.memoryless:
            raise ValueError(f"--full and --memoryless are of one agent; {run.path} is a run of a team")
        if options.best_response:
            of_trust_region(config)
        _check(options, "episodes", "max_steps", "response_steps")
    seed = derive_seed(options.seed, "evaluation")
    actor = PolicyActor(policy, deterministic=not options.sample)
    with bad_input():
        summary = evaluate_team(
            actor, env, options.episodes, seed, options.max_steps, _Played(options.episodes)
        ).summary()
    _print_heading(run, _words(env), changes)
    low, high = summary.pop("episodic_return_low"), summary.pop("episodic_return_high")
    print(f"return of the team  {summary.pop('episodic_return'):.3f}  [{low:.3f}, {high:.3f}]  95 % interval")
    print(f"length  {summary.pop('episodic_length'):.1f} steps, {summary.pop('episodes')} episodes")
    if summary:
        print(table([(name, f"{value:.4g}") for name, value in summary.items()]))
    if options.best_response:
        _print_gains(run, config, policy, options)
    return 0


def _print_heading(run: Run, what: str, changes: Sequence[str]) -> None:
    config = run.config
    title = f"{config.recipe} {' '.join([config.label, *changes])} s{config.seed}"
    print(one_line(f"{title} at step {run.step:,}: {what}"))


def _words(env: EnvConfig | TeamEnvConfig) -> str:
    return f"{env.id} {', '.join(f'{name}={value}' for name, value in env.kwargs.items())}"


def _print_gains(run: Run, config: TeamTaskConfig, policy: TeamPolicy, options: EvalOptions) -> None:
    from scrubjay.experiments.reports.equilibrium import learner_state, untrained, watched_gains

    with bad_input():
        learned = learner_state(run)
    steps, episodes, seed = options.response_steps, options.episodes, options.seed
    for when, team, known in (("before training", untrained(config), None), ("after", policy, learned)):
        told = watched_gains(f"best responses {when}", team, config, steps, episodes, seed, known)
        print(
            f"{when}: epsilon {max(gain.gain for gain in told):.3f}, as far as {options.response_steps:,} "
            "steps find it"
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

"""`scrubjay eval`: evaluate a policy, a team or random actions, or a supervised run on test questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import Positional, UseAppendAction, arg

from scrubjay.experiments.cli.arguments import parse
from scrubjay.experiments.cli.failures import UsageError, bad_input, check_at_least
from scrubjay.experiments.cli.untrusted_text import one_line, table
from scrubjay.experiments.commands.options import (
    RESPONSES_START,
    Checkpoint,
    EnvSettings,
    ResponseSteps,
    Trust,
    check_latest,
)
from scrubjay.experiments.progress import ProgressLines
from scrubjay.experiments.runs import MAX_STEPS

if TYPE_CHECKING:
    from scrubjay.agents.rl.policy import Policy
    from scrubjay.agents.teams.policy import TeamPolicy
    from scrubjay.experiments.runs.evaluation import EpisodeScores
    from scrubjay.experiments.runs.reinforcement import TeamTaskConfig, TrainConfig
    from scrubjay.experiments.runs.run import Run
    from scrubjay.experiments.runs.supervised import SupervisedConfig
    from scrubjay.experiments.tasks.environments import EnvConfig
    from scrubjay.experiments.tasks.teams import TeamEnvConfig
    from scrubjay.experiments.viz.differences import Difference


_EPISODES = 100
"""Number of episodes by default."""


@dataclass(frozen=True)
class EvalOptions:
    """Evaluate a trained policy or random actions on whole episodes, or a supervised run on new test
    questions."""

    run: Positional[Path]
    """Run directory. With --random also a recipe, an environment id, a module:callable, or the name of a
    team."""
    episodes: int = _EPISODES
    """Number of episodes."""
    seed: int = 1
    """Random seed of the episodes, or of a supervised run's questions."""
    max_steps: int = MAX_STEPS
    """Maximum steps in each of up to 64 parallel environments. Episodes unfinished by then are discarded."""
    sample: bool = False
    """Sample actions from the policy instead of taking the most likely one."""
    random: bool = False
    """Play random actions in the environment instead of a trained policy, as a baseline."""
    wrap: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="WRAPPER")] = ()
    """With --random: wrapper of a named environment, as in train. Repeat the flag for several."""
    best_response: bool = False
    """For teams: train each agent alone while the other agents are fixed (best response), and report by how
    much its return increases. This is done for the initial policies and for the trained policies."""
    response_steps: ResponseSteps = 50_000
    full: Path | None = None
    """Single-agent run trained on the fully observable version of the task. Report the observability gap:
    the return of that run minus the return of the evaluated run."""
    memoryless: Path | None = None
    """Single-agent run without memory on the same task. Report the gain from memory: the return of the
    evaluated run minus that of the run without memory. On a fully observable task it should be near 0."""
    set: EnvSettings = ()
    memory: UseAppendAction[tuple[str, ...]] = ()
    """Setting of the memory to change, as name=value; only settings that do not affect its weights, such as
    `top_k`."""
    checkpoint: Checkpoint = "latest"
    trust: Trust = False


def run(argv: Sequence[str]) -> int:
    """`scrubjay eval RUN [--episodes N] [--set corridor_length=200] [--memory top_k=2] [--random]`."""
    options = parse(EvalOptions, argv, "scrubjay eval")
    if options.random:
        return _evaluate_random(options)
    if options.wrap:
        raise UsageError(f"--wrap requires --random; the run {options.run} has its own wrappers")
    settings, changes = options.set, options.memory
    from scrubjay.experiments.commands.loading import config_of_agent, untrusted_limits
    from scrubjay.experiments.recipes.overrides import with_memory_fields
    from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
    from scrubjay.experiments.runs.run import Run
    from scrubjay.experiments.runs.supervised import SupervisedConfig

    # The user, not the run, decides on the number of episodes and on training best responses.
    work = None if options.best_response else max(1.0, options.episodes / _EPISODES)
    with untrusted_limits(options.trust, work):
        with bad_input():
            if _names_environment(options.run):
                raise UsageError(f"no run at {options.run}; to play random actions there, add --random")
            trained_run = Run.load(options.run, options.trust, options.checkpoint)
            if changes:
                trained_run = trained_run.with_memory(with_memory_fields(trained_run.config.memory, changes))
        if isinstance(trained_run.config, SupervisedConfig):
            return _evaluate_supervised(trained_run, trained_run.config, argv, changes, options.seed)
        if isinstance(trained_run.config, TeamTaskConfig):
            return _evaluate_team(trained_run, trained_run.config, settings, changes, options)
        return _evaluate_agent(trained_run, config_of_agent(trained_run), settings, changes, options)


def _evaluate_agent(
    run: Run, config: TrainConfig, settings: Sequence[str], changes: Sequence[str], options: EvalOptions
) -> int:
    """Evaluate a trained policy on episodes and print the results."""
    from scrubjay.experiments.recipes.overrides import with_env_settings
    from scrubjay.experiments.runs.evaluation import evaluate

    with bad_input():
        if options.best_response:
            raise ValueError(f"--best-response requires a team; {run.path} is a single-agent run")
        if options.episodes == 1 and (options.full or options.memoryless):
            raise ValueError("episodes=1: must be at least 2 for the confidence interval of a difference")
        env = with_env_settings(config.env, settings)
        policy = run.policy_for(env)
        check_at_least(options, 1, "episodes", "max_steps")
        check_at_least(options, 0, "seed")
    with bad_input():
        baselines = _load_baselines(config, policy, settings, options)
        scores = evaluate(policy, env, **_evaluation_settings(options))
        summary = scores.summary()
    _print_heading(run, _describe_env(env), changes)
    _print_scores(summary, options)
    for name, baseline in baselines.items():
        with bad_input():
            other_scores = evaluate(baseline.policy, baseline.env, **_evaluation_settings(options))
            mean, low, high = baseline.difference(scores, other_scores)
        print(
            one_line(
                f"{name}  {mean:+.3f}  [{low:+.3f}, {high:+.3f}]  95 % interval, against {baseline.path}"
            )
        )
    return 0


def _print_scores(summary: dict[str, float], options: EvalOptions) -> None:
    """Print the scores of a single agent."""
    for name, label in (("episodic_return", "return "), ("success", "success")):
        if name in summary:
            low, high = summary[f"{name}_low"], summary[f"{name}_high"]
            print(f"{label}  {summary[name]:.3f}  [{low:.3f}, {high:.3f}]  95 % interval")
    if "reached" in summary:
        print(f"reached  {summary['reached']:.3f}  of the episodes came to a choice, right or wrong")
    print(f"length   {summary['episodic_length']:.1f} steps, {_describe_count(summary['episodes'], options)}")


_POLICY_FLAGS = ("sample", "best_response", "full", "memoryless", "memory", "checkpoint")
"""Options of a trained policy, which random actions do not have."""


def _evaluate_random(options: EvalOptions) -> int:
    """Evaluate random actions in the environment of a run or in a named one, and print the results."""
    for name in _POLICY_FLAGS:
        if getattr(options, name) != getattr(EvalOptions, name):
            raise UsageError(f"--random plays no trained policy; omit --{name.replace('_', '-')}")
    from scrubjay.experiments.commands.loading import untrusted_limits
    from scrubjay.experiments.recipes.overrides import with_env_settings
    from scrubjay.experiments.runs.evaluation import evaluate_actor, evaluate_team
    from scrubjay.experiments.tasks.random_actions import RandomActor, RandomRule
    from scrubjay.experiments.tasks.teams import TeamEnvConfig

    is_named = not options.run.exists()
    work = max(1.0, options.episodes / _EPISODES)
    with untrusted_limits(options.trust or is_named, work), bad_input():
        check_at_least(options, 1, "episodes", "max_steps")
        check_at_least(options, 0, "seed")
        env = with_env_settings(_env_of_random(options), options.set)
        settings = _evaluation_settings(options)
        del settings["deterministic"]
        heading = one_line(f"random actions: {_describe_env(env)}")
        if isinstance(env, TeamEnvConfig):
            summary = evaluate_team(RandomRule(options.seed), env, **settings).summary()
            print(heading)
            _print_team_scores(summary)
        else:
            spaces = env.spaces()
            actor = RandomActor(spaces.action, options.seed)
            scores = evaluate_actor(actor, env, **settings, action_masks=spaces.action_masks)
            print(heading)
            _print_scores(scores.summary(), options)
    return 0


def _env_of_random(options: EvalOptions) -> EnvConfig | TeamEnvConfig:
    """Return the environment of a run, or the one that the user named."""
    from scrubjay.experiments.recipes.overrides import find_env
    from scrubjay.experiments.runs.reinforcement import RLConfig
    from scrubjay.experiments.runs.run import Run
    from scrubjay.experiments.tasks.teams import TeamEnvConfig

    if options.run.exists():
        if options.wrap:
            raise ValueError(f"--wrap requires the name of an environment; the run {options.run} has its own")
        config = Run.load(options.run, options.trust).config
        if not isinstance(config, RLConfig):
            raise ValueError(f"{options.run} is a run of kind {config.kind!r}: it has no environment")
        return config.env
    env = find_env(str(options.run), options.set)
    if not options.wrap:
        return env
    if isinstance(env, TeamEnvConfig):
        raise UsageError(f"--wrap requires a single agent; {options.run} is a team")
    return dataclasses.replace(env, wrappers=options.wrap)


def _names_environment(run: Path) -> bool:
    """Return True for the name of an environment, a recipe or a team that is not also a path."""
    import gymnasium

    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.tasks.teams import KNOWN_TEAMS

    name = str(run)
    return not run.exists() and (name in KNOWN_TEAMS or name in RECIPES or name in gymnasium.registry)


def _evaluate_supervised(
    run: Run, config: SupervisedConfig, argv: Sequence[str], changes: Sequence[str], seed: int
) -> int:
    """Evaluate a supervised run on new test questions of this seed and print the accuracies."""
    with bad_input():
        for flag in (argument.partition("=")[0] for argument in argv if argument.startswith("--")):
            is_best = flag == "--checkpoint" and run.checkpoint_name == "best"
            if is_best or flag not in ("--seed", "--memory", "--checkpoint", "--trust", "--no-trust"):
                raise ValueError(
                    f"{flag}{' best' * is_best} requires a run with a policy; {run.path} is a run of kind "
                    f"{config.kind!r}"
                )
        config = dataclasses.replace(config, seed=seed)
        model = run.model
    lines, accuracies = ProgressLines(), {}
    for done, sizes in enumerate(config.tests):
        lines(lambda done=done: f"{done} of {len(config.tests)} sizes")
        with bad_input():
            correct, questions = config.count_correct(model, *sizes)
        accuracies[sizes] = f"{correct / questions:.3f}"
    counts, spans = (sorted(set(values)) for values in zip(*config.tests, strict=True))
    _print_heading(run, "accuracy", changes)
    what, span = config.axis_labels
    rows = [[str(count), *(accuracies[count, each] for each in spans)] for count in counts]
    print(table([[f"{what}, by {span}", *map(str, spans)], *rows]))
    return 0


def _evaluation_settings(options: EvalOptions) -> dict[str, Any]:
    """Return the arguments of an evaluation, which prints progress lines."""
    from scrubjay.experiments.runs.config import derive_seed

    lines, episodes = ProgressLines(), options.episodes

    def on_step(step: int, count: int) -> None:
        lines(lambda: f"{step:,} steps per environment, {count:,} of {episodes:,} episodes finished")

    return {
        "episodes": episodes,
        "seed": derive_seed(options.seed, "evaluation"),
        "deterministic": not options.sample,
        "max_steps": options.max_steps,
        "on_step": on_step,
    }


def _describe_count(num_finished: float, options: EvalOptions) -> str:
    if num_finished == options.episodes:
        return f"{options.episodes} episodes"
    return (
        f"{num_finished:.0f} of {options.episodes} episodes; the others did not end within "
        f"{options.max_steps:,} steps (--max-steps)"
    )


class _BaselineRun(NamedTuple):
    """Run that the evaluated run is compared with."""

    path: Path
    policy: Policy
    env: EnvConfig
    difference: Callable[[EpisodeScores, EpisodeScores], Difference]
    """Function that maps the scores of the evaluated run and of the baseline to the reported difference."""


def _load_baselines(
    config: TrainConfig, policy: Policy, settings: Sequence[str], options: EvalOptions
) -> dict[str, _BaselineRun]:
    """Return the runs that --full and --memoryless name. The keys are the names of the reported differences.

    Raises ValueError if a difference would not be meaningful.
    """
    from scrubjay.experiments.commands.loading import load_agent
    from scrubjay.experiments.recipes.overrides import with_env_settings
    from scrubjay.experiments.viz.differences import check_bias, check_gap, memory_bias, observability_gap

    if settings and options.full:
        raise ValueError(
            "--set cannot be combined with --full, whose task differs; evaluate each run with its own --set"
        )
    baselines: dict[str, _BaselineRun] = {}
    if options.full is not None:
        other, other_config = load_agent(options.full, options.trust)
        policy_of_other = other.policy_for(other_config.env)
        check_gap(other_config, config, (policy_of_other.action_space, policy.action_space))
        baselines["observability gap"] = _BaselineRun(
            other.path,
            policy_of_other,
            other_config.env,
            lambda own_scores, baseline_scores: observability_gap(baseline_scores, own_scores),
        )
    if options.memoryless is not None:
        other, other_config = load_agent(options.memoryless, options.trust)
        check_bias(config, other_config)
        env = with_env_settings(other_config.env, settings)
        baselines["gain from memory"] = _BaselineRun(other.path, other.policy_for(env), env, memory_bias)
    return baselines


def _evaluate_team(
    run: Run, config: TeamTaskConfig, settings: Sequence[str], changes: Sequence[str], options: EvalOptions
) -> int:
    """Evaluate a trained team on episodes and print the results; if requested, also train best responses."""
    from scrubjay.experiments.recipes.overrides import with_env_settings
    from scrubjay.experiments.runs.evaluation import evaluate_team
    from scrubjay.experiments.viz.differences import get_trust_region_config

    with bad_input():
        env = with_env_settings(config.env, settings)
        config = dataclasses.replace(config, env=env)
        policy = run.team_policy_for(env)
        env.make().close()
        if options.full or options.memoryless:
            raise ValueError(
                f"--full and --memoryless require a single-agent run; {run.path} is a run of a team"
            )
        if options.best_response:
            check_latest(options.checkpoint, RESPONSES_START)
            get_trust_region_config(config)
            if run.untrusted:
                config.check_limits()
        check_at_least(options, 1, "episodes", "max_steps", "response_steps")
        check_at_least(options, 0, "seed")
    with bad_input():
        summary = evaluate_team(policy, env, **_evaluation_settings(options)).summary()
    _print_heading(run, _describe_env(env), changes)
    _print_team_scores(summary)
    if options.best_response:
        _print_gains(run, config, policy, options)
    return 0


def _print_team_scores(summary: dict[str, float]) -> None:
    low, high = summary.pop("episodic_return_low"), summary.pop("episodic_return_high")
    print(f"return of the team  {summary.pop('episodic_return'):.3f}  [{low:.3f}, {high:.3f}]  95 % interval")
    print(f"length  {summary.pop('episodic_length'):.1f} steps, {summary.pop('episodes')} episodes")
    if summary:
        print(table([(name, f"{value:.4g}") for name, value in summary.items()]))


def _print_heading(run: Run, text: str, changes: Sequence[str]) -> None:
    config = run.config
    title = f"{config.recipe} {' '.join([config.label, *changes])} s{config.seed}"
    print(one_line(f"{title} at step {run.step:,}: {text}"))


def _describe_env(env: EnvConfig | TeamEnvConfig) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in env.kwargs.items())
    return " ".join([f"{env.id} {settings}".strip(), *(f"in {text}" for text in env.wrappers)])


def _print_gains(run: Run, config: TeamTaskConfig, policy: TeamPolicy, options: EvalOptions) -> None:
    from scrubjay.experiments.viz.differences import build_untrained_policy, learner_state, measure_gains

    with bad_input():
        final_state = learner_state(run)
    steps = options.response_steps
    for when, team, state in (
        ("before training", build_untrained_policy(config), None),
        ("after", policy, final_state),
    ):
        gains = measure_gains(
            team, config, steps, options.episodes, options.seed, state, f"best responses {when}"
        )
        epsilon = max(gain.gain for gain in gains)
        print(f"{when}: epsilon {epsilon:.3f}, with {steps:,} steps per best response")
        rows = [
            (
                f"agent {agent}",
                f"return {gain.before:.3f}",
                f"gains {gain.gain:+.3f}",
                f"[{gain.low:+.3f}, {gain.high:+.3f}]",
            )
            for agent, gain in enumerate(gains)
        ]
        print(table(rows))

"""`scrubjay train` and `scrubjay resume`: start or continue a training run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from scrubjay.experiments.cli.arguments import RecipeFlags, parse, parse_known, print_help
from scrubjay.experiments.cli.failures import UsageError, bad_input
from scrubjay.experiments.cli.untrusted_text import format_entries, one_line
from scrubjay.experiments.commands.list import describe_learners, names
from scrubjay.experiments.commands.options import EngineOptions, Logger, Quiet, Trust, join_cluster
from scrubjay.experiments.runs import loggers

if TYPE_CHECKING:
    from scrubjay.experiments.runs.cluster import RayOptions
    from scrubjay.experiments.runs.run import Run


_SCHEDULE_NOTE = (
    "note: settings with a schedule, such as the learning rate, reached their last values after {:,} steps; "
    "all further steps use these values"
)


@dataclass(frozen=True)
class TrainOptions(EngineOptions):
    """Options of a new run that are not part of its config."""

    run_dir: str | None = None
    """Directory of the run; default: a new folder in runs."""
    config: Path | None = None
    """YAML or JSON file with entries of a config, such as the config.json of a run. Flags override them."""
    trust: Annotated[
        bool, arg(help="Trust the file of --config: create the environment that it names, of any size.")
    ] = False
    quiet: Quiet = False
    logger: Logger = None


@dataclass(frozen=True)
class _AllFlags(TrainOptions, RecipeFlags):
    """All flags of `scrubjay train` that are not fields of a config."""


def run(argv: Sequence[str]) -> int:
    """`scrubjay train [RECIPE] [--config FILE] [--memory NAME] [--learner NAME] [--env ID] [--field x]`."""
    if not argv or argv[0] in ("-h", "--help"):
        all_names = names()
        about = (
            "Train a recipe, or the config in a file. Run scrubjay train RECIPE --help for all fields of its "
            "config, such as --total-steps N and --init-from RUN, and their defaults."
        )
        names_text = (
            f"recipes\n{format_entries(all_names.recipes)}\n\n"
            f"methods, for multi-agent recipes\n{format_entries(all_names.methods)}\n\n"
            f"learners\n{describe_learners(all_names)}"
        )
        print_help(_AllFlags, "scrubjay train [RECIPE]", f"{about}\n\n{names_text}")
    recipe = None if argv[0].startswith("-") else argv[0]
    options, remaining = parse_known(TrainOptions, argv if recipe is None else argv[1:])
    if options.config is None:
        recipe = argv[0]
    ray = options.ray()
    if options.trust and options.config is None:
        raise UsageError("--trust requires --config FILE: a recipe and its flags need no trust")
    from scrubjay.experiments.commands.loading import continue_training, untrusted_limits

    # Ray processes reserve their own memory.
    with untrusted_limits(options.config is None or options.trust or ray is not None, work=None):
        new_run = _create_run(recipe, remaining, options, ray)
        print(one_line(f"run directory: {new_run.path}"), flush=True)
        if new_run.config.init_from is not None:
            message = f"weights of {new_run.config.init_from} at step {new_run.config.init_step:,}"
            print(one_line(message), flush=True)
        return continue_training(new_run, options.quiet, ray, options.logger)


def _create_run(
    recipe: str | None, flags: Sequence[str], options: TrainOptions, ray: RayOptions | None
) -> Run:
    """Create the run of a recipe or of a config file."""
    from scrubjay.experiments.recipes.overrides import override
    from scrubjay.experiments.runs.run import Run

    start = None
    if options.config is not None:
        from scrubjay.experiments.recipes.config_file import read_config

        with bad_input():
            start = read_config(options.config, recipe, options.trust)
    config = override(recipe, flags, start, options_type=TrainOptions)
    with bad_input():
        if start is not None and not options.trust:
            config.check_limits()
        facts = config.check(ray)
        loggers.check(options.logger)
        join_cluster(ray)
        return Run.create(config, options.run_dir, facts)


@dataclass(frozen=True)
class ResumeOptions(EngineOptions):
    """Continue a run from its latest checkpoint. The result is the same as without the interruption."""

    run: Positional[Path]
    """Run directory."""
    total_steps: int | None = None
    """New total of training steps; must be larger than the number of completed steps. Learning-rate schedules
    keep their original length."""
    quiet: Quiet = False
    logger: Logger = None
    env: str | None = None
    """Id of the run's environment, as permission to create it. Only a custom environment needs permission."""
    wrap: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="WRAPPER")] = ()
    """Wrapper of the run, as permission to apply it, written as in training. Only a custom wrapper needs
    permission. Repeat the flag for several."""
    trust: Trust = False


def resume(argv: Sequence[str]) -> int:
    """`scrubjay resume RUN [--total-steps N] [--env ID] [--wrap WRAPPER] [--trust] [--engine ray ...]`."""
    options = parse(ResumeOptions, argv, "scrubjay resume")
    ray = options.ray()
    from scrubjay.experiments.commands.loading import continue_training, untrusted_limits
    from scrubjay.experiments.runs.run import Run

    with untrusted_limits(
        options.trust or ray is not None, work=None
    ):  # Ray processes reserve their own memory
        with bad_input():
            run = Run.load(options.run, options.trust)
            run = run.with_trusted_env(options.env, options.wrap)
            if options.total_steps is not None:
                run = run.with_total_steps(options.total_steps)
                if run.config.has_schedule and options.total_steps > run.config.first_plan:
                    print(one_line(_SCHEDULE_NOTE.format(run.config.first_plan)), file=sys.stderr)
            run.check(ray)
            loggers.check(options.logger)
        if run.is_finished:
            print(one_line(f"{run.path} is finished; train it further with --total-steps N"))
            return 0
        with bad_input():
            join_cluster(ray)
        return continue_training(run, options.quiet, ray, options.logger)

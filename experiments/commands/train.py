"""`scrubjay train` and `scrubjay resume`: start or continue a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from scrubjay.experiments.cli.arguments import parse, take_flag
from scrubjay.experiments.cli.terminal import bad_input, table
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.commands.cluster import join_cluster, take_engine, take_logger
from scrubjay.experiments.commands.list import list_learner_names, list_methods, list_recipes
from scrubjay.experiments.explain import explain
from scrubjay.experiments.runs import loggers

LoggerName = Literal["wandb", "mlflow"]


def run(argv: Sequence[str]) -> int:
    """`scrubjay train RECIPE [--memory NAME] [--learner NAME] [--method NAME] [--env ID] [--field x]`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: scrubjay train RECIPE [--memory NAME] [--learner NAME] [--method NAME]\n"
            "                      [--memory stack --memory.parts NAME+NAME...]\n"
            "                      [--env ID|module:callable] [--set NAME=VALUE ...] [--init-from RUN]\n"
            "                      [--run-dir DIR] [--quiet] [--logger wandb|mlflow] [--any.field X ...]\n"
            "                      [--engine ray [--num-env-runners N] [--num-learners N] [--address "
            "HOST:PORT]]\n\n"
            f"{table(list_recipes())}\n\nmethods, for multi-agent recipes\n{table(list_methods())}\n\n"
            f"learners\n{table(list_learner_names())}\n\n"
            "Run scrubjay train RECIPE --help for all fields and their defaults."
        )
        return 0
    remaining = list(argv[1:])
    run_dirs, logger = take_flag(remaining, "--run-dir"), take_logger(remaining)
    quiet = "--quiet" in remaining
    ray = take_engine(remaining)
    remaining = [word for word in remaining if word != "--quiet"]
    explain(argv[0], remaining)
    from scrubjay.experiments.commands.loading import continue_training
    from scrubjay.experiments.recipes.overrides import override
    from scrubjay.experiments.runs.run import Run

    config = override(argv[0], remaining)
    with bad_input():
        config.check(ray)
        loggers.check(logger)
        join_cluster(ray)
        new_run = Run.create(config, run_dirs[-1] if run_dirs else None)
    print(one_line(f"run directory: {new_run.path}"), flush=True)
    if new_run.config.init_from is not None:
        message = f"weights of {new_run.config.init_from} at step {new_run.config.init_step:,}"
        print(one_line(message), flush=True)
    return continue_training(new_run, quiet, ray, logger)


@dataclass(frozen=True)
class ResumeOptions:
    """Continue a run from its latest checkpoint. The result is the same as without the interruption.

    To use Ray add `--engine ray`, with `--num-env-runners`, `--num-learners` and `--address` as in train.
    """

    run: Positional[Path]
    """Run directory."""
    total_steps: int | None = None
    """New total of training steps; must be larger than the number of completed steps. Learning-rate schedules
    keep their original length."""
    quiet: bool = False
    """Hide the progress display."""
    logger: LoggerName | None = None
    """Logging service that also receives the metrics of every update. If the service already has a run for
    this directory, that run is continued."""
    env: str | None = None
    """Id of the run's environment, as permission to create it. Only a custom environment needs permission."""
    trust: bool = False
    """Trust the run: allow its custom environment and the pickled data in its files to execute code."""


def resume(argv: Sequence[str]) -> int:
    """`scrubjay resume RUN [--total-steps N] [--env ID] [--trust] [--engine ray ...]`."""
    remaining = list(argv)
    ray = take_engine(remaining)
    options = parse(ResumeOptions, remaining, "scrubjay resume")
    from scrubjay.experiments.commands.loading import continue_training, memory_guard
    from scrubjay.experiments.runs.run import Run

    with memory_guard(options.trust or ray is not None):  # Ray processes reserve their own memory
        with bad_input():
            run = Run.load(options.run, options.trust)
            if options.env is not None:
                run = run.with_trusted_env(options.env)
            if options.total_steps is not None:
                run = run.with_total_steps(options.total_steps)
            run.check(ray)
            loggers.check(options.logger)
        if run.is_finished:
            print(one_line(f"{run.path} is finished; train it further with --total-steps N"))
            return 0
        with bad_input():
            join_cluster(ray)
        return continue_training(run, options.quiet, ray, options.logger)

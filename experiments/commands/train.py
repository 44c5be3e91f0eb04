"""`scrubjay train` and `scrubjay resume`: a run from its beginning, or from where it stopped, to its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from scrubjay.experiments import loggers
from scrubjay.experiments.commands.cluster import join, take_engine, take_logger
from scrubjay.experiments.commands.list import learners, methods, recipes
from scrubjay.experiments.explain import explain
from scrubjay.experiments.words.arguments import parse, take_flag
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input, table

LoggerName = Literal["wandb", "mlflow"]


def run(words: Sequence[str]) -> int:
    """`scrubjay train RECIPE [--memory NAME] [--learner NAME] [--method NAME] [--env ID] [--field x]`."""
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: scrubjay train RECIPE [--memory NAME] [--learner NAME] [--method NAME]\n"
            "                      [--memory stack --memory.parts NAME+NAME...]\n"
            "                      [--env ID|module:callable] [--set NAME=VALUE ...] [--init-from RUN]\n"
            "                      [--run-dir DIR] [--quiet] [--logger wandb|mlflow] [--any.field X ...]\n"
            "                      [--engine ray [--num-env-runners N] [--num-learners N] [--address "
            "HOST:PORT]]\n\n"
            f"{table(recipes())}\n\nmethods, of recipes with several agents\n{table(methods())}\n\n"
            f"learners, of\n{table(learners())}\n\n"
            "scrubjay train RECIPE --help lists every field and its default."
        )
        return 0
    remaining = list(words[1:])
    run_dirs, logger = take_flag(remaining, "--run-dir"), take_logger(remaining)
    quiet = "--quiet" in remaining
    ray = take_engine(remaining)
    remaining = [word for word in remaining if word != "--quiet"]
    explain(words[0], remaining)
    from scrubjay.experiments.commands.loading import train_on
    from scrubjay.experiments.recipes.overrides import override
    from scrubjay.experiments.run import Run

    config = override(words[0], remaining)
    with bad_input():
        config.check(ray)
        loggers.check(logger)
        join(ray)
        started = Run.create(config, run_dirs[-1] if run_dirs else None)
    print(one_line(f"run directory: {started.path}"), flush=True)
    if started.config.init_from is not None:
        told = f"weights of {started.config.init_from} at step {started.config.init_step:,}"
        print(one_line(told), flush=True)
    return train_on(started, quiet, ray, logger)


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a run from its newest checkpoint, to the result it would have had uninterrupted, or further.

    On any engine: `--engine ray`, with `--num-env-runners`, `--num-learners` and `--address` as in train.
    """

    run: Positional[Path]
    """Its directory."""
    total_steps: int | None = None
    """Train to so many steps in all, more than are done; step sizes that fall keep their first plan."""
    quiet: bool = False
    """Show no progress."""
    logger: LoggerName | None = None
    """Service that is told of every update, in the run there that this one was begun in."""
    env: str | None = None
    """The name of the run's environment, where that is none of Scrubjay's and you mean it."""
    trust: bool = False
    """Run code that the directory names or has pickled: an environment that is none of Scrubjay's, say."""


def resume(words: Sequence[str]) -> int:
    """`scrubjay resume RUN [--total-steps N] [--env ID] [--trust] [--engine ray ...]`."""
    remaining = list(words)
    ray = take_engine(remaining)
    options = parse(ResumeOptions, remaining, "scrubjay resume")
    from scrubjay.experiments.commands.loading import guarded, train_on
    from scrubjay.experiments.run import Run

    with guarded(options.trust or ray is not None):  # Ray's processes take what they have claimed
        with bad_input():
            run = Run.load(options.run, options.trust)
            if options.env is not None:
                run = run.of_environment(options.env)
            if options.total_steps is not None:
                run = run.extended(options.total_steps)
            run.check(ray)
            loggers.check(options.logger)
        if run.finished:
            print(one_line(f"{run.path} is finished; --total-steps N trains it further"))
            return 0
        with bad_input():
            join(ray)
        return train_on(run, options.quiet, ray, options.logger)

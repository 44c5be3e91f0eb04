"""Train from Python: `run = train(config)`, then `run.policy.act(...)`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from scrubjay.experiments import loggers
from scrubjay.experiments.kinds import make_engine
from scrubjay.experiments.kinds.base import Experiment
from scrubjay.experiments.kinds.engine import Engine
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.device import one_thread
from scrubjay.experiments.runs.directory import CONFIG, CURVE, RESULT, write_atomically
from scrubjay.experiments.runs.metrics import OnUpdate
from scrubjay.experiments.runs.progress import ProgressDisplay
from scrubjay.experiments.runs.reading import read_object
from scrubjay.experiments.runs.stopping import Interrupted, StopRequest
from scrubjay.experiments.words.foreign import one_line


class CannotBeginError(ValueError):
    """Training cannot begin, or go on from where it stands: the run is in use, or a file of it is damaged."""


def train(
    config: Experiment,
    run_dir: Path | str | None = None,
    progress: bool = False,
    ray: RayOptions | None = None,
    on_update: OnUpdate | None = None,
    logger: str | None = None,
) -> Run:
    """Run an experiment to its end in a new directory, by default `runs/<recipe>-<memory>-s<seed>-<time>`.

    Args:
        config: What to do.
        run_dir: Its directory.
        progress: Whether to show how far it is.
        ray: The cluster to train on; None for this process.
        on_update: Called as `on_update(step, row)` after every update with its row of metrics.jsonl, for
            loggers of your own; what it raises ends the training.
        logger: "wandb" or "mlflow": a service that is told of every row as well, by its own client.

    Raises:
        ValueError: before anything is written, if the config cannot work or the directory holds a run, or
            before any training, if the logger's service cannot be reached.
        Interrupted: after Ctrl-C, a checkpoint written.
    """
    config.check(ray)
    loggers.check(logger)
    run = Run.create(config, run_dir)
    go_on(run, progress, ray, on_update, logger)
    return run


def resume(
    run_dir: Path | str,
    progress: bool = False,
    ray: RayOptions | None = None,
    trust: bool = False,
    total_steps: int | None = None,
    logger: str | None = None,
) -> Run:
    """Go on with a run from its newest checkpoint to its end; on the CPU as if it had never stopped.

    Does nothing if it is finished and is given no more steps.

    Args:
        run_dir: Its directory.
        progress: Whether to show how far it is.
        ray: The cluster to train on; None for this process, on whichever of them it was begun.
        trust: Whether code may run that the directory names or has pickled, as in `Run.load`.
        total_steps: A new total: config.json names both from now on, and the result is that of the new end.
            What changes over a run's course, as a step size may, goes by the first total, and stays as it was
            there.
        logger: "wandb" or "mlflow": the service that is told of every row, in the run there that this one was
            begun in.

    Raises:
        ValueError: if there is no run, if it has so many steps already, or without `trust`, if it would have
            to run code of the directory's.
        Interrupted: after Ctrl-C, a checkpoint written.
    """
    loggers.check(logger)
    run = Run.load(run_dir, trust)
    if total_steps is not None:
        run = run.extended(total_steps)
    run.check(ray)
    go_on(run, progress, ray, logger=logger)
    return run


def go_on(
    run: Run,
    progress: bool = False,
    ray: RayOptions | None = None,
    on_update: OnUpdate | None = None,
    logger: str | None = None,
) -> None:
    """Train from the newest checkpoint, or from the start, to the end; then evaluate and plot.

    Raises Interrupted after Ctrl-C or SIGTERM, a checkpoint written; CannotBeginError before any training.
    """
    if run.finished:
        return
    config = run.config
    with one_thread(), StopRequest() as stop, _engine(run, ray) as engine, _log(run, logger) as log:
        title = one_line(f"{config.recipe} {config.label} s{config.seed}")
        with ProgressDisplay(title, config.planned_steps, engine.step, progress) as display:
            while engine.step < config.planned_steps and stop.signal_number is None:
                row = engine.update()
                display.update(engine.step, row)
                log.update(engine.step, row)
                if on_update is not None:
                    on_update(engine.step, row)
        engine.save()
        _draw(run)
        if stop.signal_number is not None:
            raise Interrupted(stop.signal_number, run.again)
        result = engine.result()
        write_atomically(run.path / RESULT, json.dumps(result, indent=2) + "\n")
        log.finish(result)


@contextlib.contextmanager
def _log(run: Run, logger: str | None) -> Iterator[loggers.Log]:
    with contextlib.ExitStack() as stack:
        try:
            log = stack.enter_context(loggers.log_to(logger, run.path, read_object(run.path / CONFIG)))
        except (ValueError, OSError) as error:
            raise CannotBeginError(f"{error}") from error
        yield log


def _engine(run: Run, ray: RayOptions | None) -> Engine:
    try:
        engine = _made(run, ray)
    except (ValueError, OSError) as error:
        raise CannotBeginError(f"{error}") from error
    try:
        # What the curve is drawn from at the end, when it would be too late to say so.
        _ = run.metrics(), run.success_without_memory
        _extend(run)
    except (ValueError, OSError) as error:
        with engine:
            raise CannotBeginError(f"{error}") from error
    return engine


def _extend(run: Run) -> None:
    """Write down another total if the run has been given one, and forget what its weights came to so far."""
    if run.as_written is not None:
        from scrubjay.experiments.reports.comparison import kept_files  # which loads the recipes

        for file in kept_files(run):
            file.unlink(missing_ok=True)
        run.write_extension()


def _made(run: Run, ray: RayOptions | None) -> Engine:
    if ray is None:
        return make_engine(run.config, run.path, run.trust)
    from scrubjay.experiments.kinds.distributed import make_ray_engine  # importing RLlib takes seconds

    return make_ray_engine(run.config, run.path, ray, run.trust)


def _draw(run: Run) -> None:
    from scrubjay.experiments.reports.curves import has_curve, plot_runs  # matplotlib is slow to import

    if has_curve(run):
        plot_runs([run], run.path / CURVE)

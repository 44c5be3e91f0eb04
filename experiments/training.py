"""Train from Python: `run = train(config)`, then `run.policy.act(...)`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scrubjay.agents.rl.exits import EnvExitError, describe_exit
from scrubjay.experiments.cli.failures import FailedError, describe
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.files import CONFIG, CURVE, METRICS, RESULT, read_object, write_atomically
from scrubjay.experiments.progress import (
    LINE_SECONDS,
    STOP_SECONDS,
    GracefulInterrupt,
    ProgressDisplay,
    StopRequest,
)
from scrubjay.experiments.resources import one_thread
from scrubjay.experiments.runs import loggers
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.config import Experiment
from scrubjay.experiments.runs.engine import Engine
from scrubjay.experiments.runs.kinds import make_engine
from scrubjay.experiments.runs.metrics import OnUpdate, read_metrics
from scrubjay.experiments.runs.reinforcement import RLConfig
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.runs.status import write_status


class TrainingStartError(ValueError):
    """Training cannot start or resume, because the run is in use or one of its files is damaged."""


def train(
    config: Experiment,
    run_dir: Path | str | None = None,
    progress: bool = False,
    ray: RayOptions | None = None,
    on_update: OnUpdate | None = None,
    logger: str | None = None,
) -> Run:
    """Train an experiment in a new run directory, by default `runs/<recipe>-<memory>-s<seed>-<time>`.

    Args:
        config: Config of the experiment.
        run_dir: Directory to create.
        progress: Show progress.
        ray: Cluster to train on; None trains in this process.
        on_update: Callback `on_update(step, row)` for custom loggers, called after every update with the row
            of metrics.jsonl. An exception in the callback ends the training.
        logger: Service that also receives every row, "wandb" or "mlflow"; None for no service.

    Raises:
        ValueError: if the config is invalid or the directory holds a run (before anything is written), or if
            the logger's service cannot be reached (before any training).
        GracefulInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    facts = config.check(ray)
    loggers.check(logger)
    run = Run.create(config, run_dir, facts)
    run_training(run, progress, ray, on_update, logger)
    return run


def resume(
    run_dir: Path | str,
    progress: bool = False,
    ray: RayOptions | None = None,
    trust: bool = False,
    total_steps: int | None = None,
    logger: str | None = None,
) -> Run:
    """Resume a run from its latest checkpoint. On the CPU the result equals that of an uninterrupted run.

    Does nothing if the run is finished, unless `total_steps` is larger than its current total.

    Args:
        run_dir: Directory of the run.
        progress: Show progress.
        ray: Cluster to train on; None trains in this process. It may differ from the cluster at the start.
        trust: Allow the run to execute any code, as in `Run.load`.
        total_steps: New total of steps. config.json stores the old and the new total, and the result is
            replaced. Schedules, such as that of the learning rate, last for the first total and then keep
            their last value.
        logger: Service that also receives every row, "wandb" or "mlflow". If this run already has a run at
            the service, that one is continued.

    Raises:
        ValueError: if there is no run, if the run has already completed `total_steps` steps, or if resuming
            needs to run code of the directory and `trust` is False.
        GracefulInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    loggers.check(logger)
    run = Run.load(run_dir, trust)
    if total_steps is not None:
        run = run.with_total_steps(total_steps)
    run.check(ray)
    run_training(run, progress, ray, logger=logger)
    return run


def run_training(
    run: Run,
    progress: bool = False,
    ray: RayOptions | None = None,
    on_update: OnUpdate | None = None,
    logger: str | None = None,
) -> None:
    """Train from the latest checkpoint, or from step 0, to the end; then evaluate and plot.

    Raises TrainingStartError before any training, GracefulInterrupt after Ctrl-C or SIGTERM, once a
    checkpoint is written, and FailedError if code of the user ends the process. If the update does not end
    within `STOP_SECONDS` of SIGTERM, for example since an environment hangs, the process ends without
    another checkpoint.
    """
    if run.is_finished:
        return
    config = run.config
    with (
        one_thread(),
        StopRequest(lambda place: _report_hang(run, ray, place)) as stop,
        _refuse_exits(config, stop),
        contextlib.ExitStack() as resources,
    ):
        try:
            _ = run.success_without_memory  # the curve needs it; its errors are reported before training
            engine = resources.enter_context(make_engine(config, run.path, run.trust, ray))
            # Another process may have trained the run since it was loaded.
            run.check_current()
            if run.is_finished:
                return
            read_metrics(run.path / METRICS)  # the curve needs them, too
            _write_extension(run)
            log_config = read_object(run.path / CONFIG) if logger else {}
            log = resources.enter_context(loggers.log_to(logger, run.path, log_config))
            (run.path / RESULT).unlink(missing_ok=True)  # it says that the run was stopped early or failed
        except (ValueError, OSError) as error:
            raise TrainingStartError(f"{error}") from error
        title = one_line(f"{config.recipe} {config.label} s{config.seed}")
        with ProgressDisplay(title, config.planned_steps, engine.step, progress) as display:
            engine.on_evaluation_step = _EvaluationWatch(engine, stop, display)
            while not engine.is_finished and stop.signal_number is None:
                try:
                    with _record_failure(engine, run.path, stop):
                        row = engine.update()
                except _StoppedError:
                    break
                display.update(engine.step, row)
                log.update(engine.step, row)
                if on_update is not None:
                    on_update(engine.step, row)
        stop.extend()
        with _record_failure(engine, run.path, stop):
            engine.save()
        _plot_curve(run)
        if stop.signal_number is not None:
            raise GracefulInterrupt(stop.signal_number, run.resume_command)
        try:
            with _record_failure(engine, run.path, stop):
                result = engine.result()
        except _StoppedError:
            assert stop.signal_number is not None
            raise GracefulInterrupt(stop.signal_number, run.resume_command) from None
        write_atomically(run.path / RESULT, json.dumps(result, indent=2) + "\n")
        log.finish(result)


class _StoppedError(Exception):
    """Stop of an evaluation by a signal. Its checkpoint is saved, and a resumed run repeats it."""


class _EvaluationWatch:
    """Callback after each vector step of an evaluation: it shows long ones, and stops them after a signal."""

    def __init__(self, engine: Engine, stop: StopRequest, display: ProgressDisplay) -> None:
        self._engine, self._stop, self._display = engine, stop, display
        self._began = time.monotonic()

    def __call__(self, num_steps: int, episodes: int) -> None:
        if self._stop.signal_number is not None:
            raise _StoppedError
        if num_steps == 1:
            self._began = time.monotonic()
        elif time.monotonic() - self._began > LINE_SECONDS:
            text = f"evaluation: {episodes:,} episodes finished"
            self._display.show_text(self._engine.step, text)


def _report_hang(run: Run, ray: RayOptions | None, place: str) -> None:
    """Print one line on a run that ends without another checkpoint, since it did not react to a signal.

    On Ray, also end the processes of a cluster that this process has started.
    """
    message = f"the update did not end within {STOP_SECONDS:.0f} s of the signal to stop: it waits in {place}"
    if isinstance(run.config, RLConfig):
        message += f", for example in environment {str(run.config.env.id)!r}"
    message += f"; steps since the latest checkpoint are lost; resume with: {run.resume_command}"
    print(one_line(f"scrubjay: {message}"), file=sys.stderr, flush=True)
    if ray is not None:
        from ray import shutdown

        shutdown()


@contextlib.contextmanager
def _record_failure(engine: Engine, run_dir: Path, stop: StopRequest) -> Iterator[None]:
    """Write the status "failed" if the `with` block raises an error."""
    try:
        yield
    except _StoppedError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) and not _comes_from_code(error, stop):
            raise
        reason = describe(error) if isinstance(error, Exception) else describe_exit(error)
        with contextlib.suppress(OSError):  # the error itself may be a full disk
            write_status(run_dir, "failed", engine.step, reason)
        raise


@contextlib.contextmanager
def _refuse_exits(config: Any, stop: StopRequest) -> Iterator[None]:
    """Raise FailedError if code of the user raises SystemExit in the `with` block; it is no success.

    A KeyboardInterrupt that does not come from Ctrl-C gets a note that names its origin.
    """
    try:
        yield
    except EnvExitError as error:
        raise FailedError(f"environment {str(config.env.id)!r}: {error}") from error
    except SystemExit as error:
        raise FailedError(describe_exit(error)) from error
    except KeyboardInterrupt as error:
        if _comes_from_code(error, stop):
            error.add_note(describe_exit(error))
        raise


def _comes_from_code(error: KeyboardInterrupt, stop: StopRequest) -> bool:
    return stop.catches_interrupts and not isinstance(error, GracefulInterrupt)


def _write_extension(run: Run) -> None:
    """Store a new total of steps, if there is one, and delete the cached scores of the old weights."""
    if run.stored_config is not None:
        from scrubjay.experiments.viz.comparison import list_cached_files  # this import loads the recipes

        for file in list_cached_files(run):
            file.unlink(missing_ok=True)
        run.write_extension()


def _plot_curve(run: Run) -> None:
    from scrubjay.experiments.viz.curves import has_curve, plot_runs  # matplotlib is slow to import

    if has_curve(run):
        plot_runs([run], run.path / CURVE)

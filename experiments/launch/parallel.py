"""Parallel training of several runs, each in its own process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from scrubjay.experiments.cli.failures import FailedError, UsageError, bad_input
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.files import CONFIG, METRICS, open_to_append
from scrubjay.experiments.progress import PLAIN_SECONDS, GracefulInterrupt, StopRequest, describe_row
from scrubjay.experiments.runs.config import Experiment
from scrubjay.experiments.runs.initial_weights import describe_differences, flatten, join_differences
from scrubjay.experiments.runs.metrics import read_last_row
from scrubjay.experiments.runs.reinforcement import RLConfig
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.runs.status import read_status
from scrubjay.memory.serialization import encode

Work = TypeVar("Work")

LOG = "log.txt"
_LOG_END_BYTES = 2**16
"""Bytes at the end of a log in which its last line is searched."""


def prepare(config: Experiment, path: Path, trust: bool = False) -> Run:
    """Return the run at `path`; create the run if it does not exist.

    The environment of `config` is trusted, since the user named it. If an existing run was extended, its
    larger total of steps replaces the total of `config`.

    Raises UsageError if the config is invalid, or if `path` holds a run with another config.
    """
    with bad_input():
        if not (path / CONFIG).exists():
            config.check()
            return Run(path, Run.create(config, path).config, trust)
        run = Run.load(path, trust)
    old = run.config.without_extensions()
    if old != config:
        differences = describe_differences(flatten(encode(config)), flatten(encode(old)))
        raise UsageError(
            f"{path} holds a run with other settings: {join_differences([*differences.values()])}; use the "
            "same settings, delete the run, or choose another directory"
        )
    return Run(path, config.with_run_fields(run.config), trust)


def run_in_processes(runs: Sequence[Run], jobs: int) -> None:
    """Start or resume all unfinished runs, `jobs` at a time with one thread each, and show their progress.

    After Ctrl-C wait until all runs have saved a checkpoint, and raise GracefulInterrupt. If a run fails,
    stop all other runs the same way, and raise FailedError with the last line of the failed run's log.
    """
    waiting = [run for run in runs if not run.is_finished]
    with _display(tuple(waiting)) as show:
        starts = [(run, partial(_start, run)) for run in waiting]
        with contextlib.closing(run_commands(starts, jobs, show)) as ends:
            for run, exit_code in ends:
                if exit_code != 0:
                    raise FailedError(f"{run.path} failed: {last_line(run.path / LOG)}")
                if read_status(run.path) != "finished":
                    raise FailedError(f"{run.path} failed: its process ended without a result")


def run_commands(
    starts: Iterable[tuple[Work, Callable[[], subprocess.Popen[bytes]]]],
    jobs: int,
    on_wait: Callable[[], object] = lambda: None,
) -> Generator[tuple[Work, int], None, None]:
    """Start all processes, `jobs` at a time, and yield each piece of work with its exit code at its end.

    After Ctrl-C, or if the iterator is closed, SIGTERM is sent to the active processes, and they are awaited.
    After Ctrl-C GracefulInterrupt is then raised. `on_wait` is called several times a second.
    """
    waiting = list(starts)
    active: dict[subprocess.Popen[bytes], Work] = {}
    with StopRequest() as stop:
        try:
            while (waiting or active) and stop.signal_number is None:
                while waiting and len(active) < jobs:
                    work, start = waiting.pop(0)
                    active[start()] = work
                time.sleep(0.2)
                on_wait()
                for process in [process for process in active if process.poll() is not None]:
                    yield active.pop(process), process.returncode
        finally:
            for process in active:
                process.terminate()  # requests a checkpoint, as Ctrl-C does
            for process in active:
                process.wait()
        if stop.signal_number is not None:
            raise GracefulInterrupt(stop.signal_number)


def _start(run: Run) -> subprocess.Popen[bytes]:
    command = ["scrubjay", "resume", str(run.path), "--quiet"]
    command += ["--trust"] * run.trust
    if run.stored_config is not None:
        command += ["--total-steps", str(run.config.total_steps)]
    if isinstance(run.config, RLConfig):
        command += ["--env", run.config.env.id]  # the user named it for this process
        command += [word for text in run.config.env.wrappers for word in ("--wrap", text)]
    return start_module(command, run.path / LOG)


def start_module(words: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    """Start `python -m` with a module and its arguments, with one thread; its output goes to `log_file`."""
    # -P: do not search the current folder for modules first.
    command = [sys.executable, "-P", "-m", *words]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with open_to_append(log_file) as log:
        # In a new session Ctrl-C at the terminal reaches only the parent, which forwards it.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


@contextlib.contextmanager
def _display(runs: Sequence[Run]) -> Iterator[Callable[[], None]]:
    console = Console()
    live = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[numbers]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    totals = {run.path: run.config.planned_steps for run in runs}
    tasks = {run.path: live.add_task(_title(run), total=totals[run.path], numbers="") for run in runs}
    whole_task = live.add_task("all runs", total=sum(totals.values()), numbers="", visible=len(runs) > 1)
    estimate = _Estimate(runs)
    last_printed = {run.path: 0.0 for run in runs}
    done: set[Path] = set()

    def show() -> None:
        for run in runs:
            row = None
            with contextlib.suppress(ValueError):  # the training process reports a damaged file
                row = read_last_row(run.path / METRICS)
            if row is None or run.path in done:
                continue
            live.update(tasks[run.path], completed=row["step"], numbers=describe_row(row))
            estimate.steps[run.path] = int(row["step"])
            live.update(whole_task, completed=sum(estimate.steps.values()), numbers=estimate.describe())
            if run.is_finished:
                done.add(run.path)
            if not console.is_terminal and (
                run.path in done or time.monotonic() - last_printed[run.path] > PLAIN_SECONDS
            ):
                last_printed[run.path] = time.monotonic()
                share = row["step"] / totals[run.path]
                eta = estimate.describe() if len(runs) > 1 else ""
                ending = f"  all runs: {eta}" if eta else ""
                print(f"{_title(run)}  {share:4.0%}  {describe_row(row)}{ending}", flush=True)

    with live:
        yield show
        show()


class _Estimate:
    """Estimate of the time until all runs are trained; `steps` are the steps of each run so far."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.steps = {run.path: _last_step(run) for run in runs}
        self._total_steps = sum(run.config.planned_steps for run in runs)
        self._first_steps, self._start = sum(self.steps.values()), time.monotonic()

    def describe(self) -> str:
        """Return the remaining time; empty while no run has advanced."""
        steps = sum(self.steps.values())
        if steps <= self._first_steps:
            return ""
        rate = (steps - self._first_steps) / (time.monotonic() - self._start)
        return f"ETA {max(0, self._total_steps - steps) / rate:,.0f} s"


def _last_step(run: Run) -> int:
    with contextlib.suppress(ValueError):  # the training process reports a damaged file
        return int((read_last_row(run.path / METRICS) or {"step": 0})["step"])
    return 0


def _title(run: Run) -> str:
    return one_line(f"{run.config.recipe} {run.config.label} s{run.config.seed}")


def last_line(path: Path) -> str:
    """Return the last line of a log."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_END_BYTES))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "no message"

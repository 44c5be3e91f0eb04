"""Progress display of long commands, and graceful interruption by Ctrl-C."""

from __future__ import annotations

import _thread
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

PLAIN_SECONDS = 5.0
"""Seconds between plain lines of a run."""
LINE_SECONDS = 3.0
"""Seconds between lines of `ProgressLines`."""


class ProgressLines:
    """Printer of progress lines to standard error, at most one every few seconds."""

    def __init__(self) -> None:
        self._last_print = time.monotonic()

    def __call__(self, line: Callable[[], str]) -> None:
        """Print the result of `line()`, if the last line is more than `LINE_SECONDS` old."""
        if time.monotonic() - self._last_print > LINE_SECONDS:
            self._last_print = time.monotonic()
            print(line(), file=sys.stderr, flush=True)


class ProgressDisplay:
    """Display of the progress of a run: success, return, steps per second, and remaining time (ETA).

    Steps per second are shown in total, and for environment, policy and learner alone. While the total of
    steps is unknown, only the number of steps is shown.
    """

    def __init__(self, title: str, total_steps: int | None, first_step: int = 0, show: bool = True) -> None:
        from rich.console import Console  # only a display needs it

        self.title = title
        self._console = Console()
        self._live = self._task = None
        self._show = show
        if show and self._console.is_terminal:
            self._live = _make_progress_bar(self._console)
        self.begin(total_steps, first_step)

    def begin(self, total_steps: int | None, first_step: int = 0) -> None:
        """Begin a part of the work with `total_steps` steps, of which `first_step` are done already."""
        self.total_steps, self.first_step = total_steps, first_step
        self._began = self._last_print = time.monotonic()
        if self._live is not None:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(self.title, total=total_steps, completed=first_step, numbers="")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, step: int, row: dict[str, float]) -> None:
        """Show the latest row of metrics."""
        self._show_text(step, describe_row(row), self.total_steps is not None and step >= self.total_steps)

    def show_text(self, step: int, text: str) -> None:
        """Show `text` in place of the latest row of metrics, until the next update."""
        self._show_text(step, text, False)

    def _show_text(self, step: int, text: str, at_once: bool) -> None:
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=step, numbers=text)
        elif self._show and (at_once or time.monotonic() - self._last_print > PLAIN_SECONDS):
            self._last_print = time.monotonic()
            print("  ".join(filter(None, self._describe(step, text))), flush=True)

    def _describe(self, step: int, text: str) -> list[str]:
        if self.total_steps is None:
            return [self.title, f"{step:,} steps", text]
        parts = [self.title, f"{step:,}/{self.total_steps:,}", text]
        if step > self.first_step:
            seconds_per_step = (self._last_print - self._began) / (step - self.first_step)
            parts.append(f"ETA {max(0, self.total_steps - step) * seconds_per_step:.0f} s")
        return parts


def _make_progress_bar(console: Console) -> Progress:
    """Return a bar that shows a share and an ETA only for tasks with a known total."""
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Share(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.completed:,.0f} steps") if task.total is None else super().render(task)

    class Remaining(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            return Text("") if task.total is None else Text("ETA ").append_text(super().render(task))

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        Share("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[numbers]}", markup=False),
        Remaining(),
        console=console,
    )


def describe_row(row: dict[str, float]) -> str:
    """Return the main metrics of a row on one line."""
    parts = []
    if "charts/success" in row:
        parts.append(f"success {row['charts/success']:.2f}")
    if "charts/episodic_return" in row:
        parts.append(f"return {row['charts/episodic_return']:.2f}")
    if "charts/SPS" in row:
        rates = "/".join(f"{row[f'time/SPS_{part}'] / 1000:.1f}k" for part in ("env", "policy", "learner"))
        parts.append(f"{row['charts/SPS']:,.0f} steps/s (env/policy/learner alone {rates})")
    return "  ".join([*parts, *loss_warnings(row)])


def loss_warnings(row: dict[str, float]) -> list[str]:
    """Return a list with a warning if a loss of the row is not finite; otherwise an empty list.

    A policy with NaN weights still acts, so that its score alone does not reveal the failure.
    """
    losses = [value for name, value in row.items() if name.endswith(("loss", "cross_entropy"))]
    return [] if all(map(math.isfinite, losses)) else ["LOST: its losses are not finite"]


_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class GracefulInterrupt(KeyboardInterrupt):
    """Error that ends the command after a stop request. All progress is saved.

    `resume_command` is the command that continues the run.
    """

    def __init__(self, signal_number: int, resume_command: str = "the same command") -> None:
        super().__init__(f"stopped; resume with: {resume_command}")
        self.exit_code = 128 + signal_number


STOP_SECONDS = 20.0
"""Seconds from SIGTERM to the end of a run whose update does not end; Slurm, for example, waits 30 s."""
_REPORT_SECONDS = 5.0
"""Maximum duration of the report on an update that does not end."""


class StopRequest:
    """Context manager in which the first SIGINT, SIGTERM or SIGHUP sets `signal_number`.

    A second signal has its default effect. Does nothing outside the main thread, where signals cannot be
    caught.

    If `on_timeout` is not None, the process ends `STOP_SECONDS` after the first SIGTERM or SIGHUP unless the
    block has ended. Before that, `on_timeout` is called with the place in the code where the block hangs.
    """

    def __init__(self, on_timeout: Callable[[str], object] | None = None) -> None:
        self.signal_number: int | None = None
        self._on_timeout = on_timeout
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()
        self._is_over = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._restore()

    @property
    def catches_interrupts(self) -> bool:
        """True if Ctrl-C would set `signal_number`, so that any KeyboardInterrupt comes from other code."""
        return self._handle == signal.getsignal(signal.SIGINT)

    def extend(self) -> None:
        """Allow another `STOP_SECONDS` until the block ends."""
        self._deadline = time.monotonic() + STOP_SECONDS

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()
        if self._on_timeout is not None and number != signal.SIGINT:
            self.extend()
            # No threading.Thread: the signal may have interrupted one of its locks.
            _thread.start_new_thread(self._end_process, (128 + number,))

    def _end_process(self, exit_code: int) -> None:
        """End this process at the deadline, and its processes of environments, unless the block ends first.

        A process of an environment is a copy of this process, so it ends at its own deadline, silently.
        """
        while time.monotonic() < self._deadline:
            time.sleep(0.1)
            if self._is_over:
                return
        if os.getpid() == self._pid:
            # In another thread, since the callback may hang, too, for example in a write.
            reporting = _thread.allocate_lock()
            reporting.acquire()
            _thread.start_new_thread(self._report, (reporting,))
            reporting.acquire(timeout=_REPORT_SECONDS)
            for process in multiprocessing.active_children():
                process.kill()
        os._exit(exit_code)

    def _report(self, reporting: _thread.LockType) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        place = "unknown" if frame is None else f"{frame.f_code.co_filename}, line {frame.f_lineno}"
        try:
            if self._on_timeout is not None:
                self._on_timeout(place)
        finally:
            reporting.release()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

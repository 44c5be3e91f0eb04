"""Progress display of long commands, and graceful interruption by Ctrl-C."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

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

    Steps per second are shown in total, and for environment, policy and learner alone.
    """

    def __init__(self, title: str, total_steps: int, first_step: int = 0, show: bool = True) -> None:
        from rich.console import Console  # only a display needs it
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.title = title
        self.total_steps = total_steps
        self.first_step = first_step
        self._console = Console()
        self._live = None
        if show and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[numbers]}  ETA"),
                TimeRemainingColumn(),
            )
            self._live = Progress(*columns, console=self._console)
            self._task = self._live.add_task(title, total=total_steps, completed=first_step, numbers="")
        self._show = show
        self._began = self._last_print = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, step: int, row: dict[str, float]) -> None:
        """Show the latest row of metrics."""
        if self._live is not None:
            self._live.update(self._task, completed=step, numbers=describe_row(row))
        elif self._show and (time.monotonic() - self._last_print > PLAIN_SECONDS or step >= self.total_steps):
            self._last_print = time.monotonic()
            rate = (step - self.first_step) / (self._last_print - self._began)
            left = max(0, self.total_steps - step) / rate
            print(
                f"{self.title}  {step:,}/{self.total_steps:,}  {describe_row(row)}  ETA {left:.0f} s",
                flush=True,
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


class StopRequest:
    """Context manager in which the first SIGINT, SIGTERM or SIGHUP sets `signal_number`.

    A second signal has its default effect. Does nothing outside the main thread, where signals cannot be
    caught.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

"""What a person sees while a run learns: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 5.0
"""Time between plain lines."""
LINE_SECONDS = 3.0
"""The same where there is no bar."""


class Lines:
    """Says on standard error, every few seconds, how far something is for whose result somebody waits."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, line: Callable[[], str]) -> None:
        """Print what `line` returns, if it is time to."""
        if time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            print(line(), file=sys.stderr, flush=True)


class ProgressDisplay:
    """Shows steps per second (whole, and of environment, policy, learner alone), return, success and ETA."""

    def __init__(self, title: str, total_steps: int, first_step: int = 0, enabled: bool = True) -> None:
        self.title = title
        self.total_steps = total_steps
        self.first_step = first_step
        self._console = Console()
        self._live = None
        if enabled and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[numbers]}  ETA"),
                TimeRemainingColumn(),
            )
            self._live = Progress(*columns, console=self._console)
            self._task = self._live.add_task(title, total=total_steps, completed=first_step, numbers="")
        self._enabled = enabled
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, step: int, row: dict[str, float]) -> None:
        """Show the newest row of metrics."""
        if self._live is not None:
            self._live.update(self._task, completed=step, numbers=describe_row(row))
        elif self._enabled and (time.monotonic() - self._said > PLAIN_SECONDS or step >= self.total_steps):
            self._said = time.monotonic()
            rate = (step - self.first_step) / (self._said - self._began)
            left = max(0, self.total_steps - step) / rate
            print(
                f"{self.title}  {step:,}/{self.total_steps:,}  {describe_row(row)}  ETA {left:.0f} s",
                flush=True,
            )


def describe_row(row: dict[str, float]) -> str:
    """Return the few numbers a person watches, on one line."""
    parts = []
    if "charts/success" in row:
        parts.append(f"success {row['charts/success']:.2f}")
    if "charts/episodic_return" in row:
        parts.append(f"return {row['charts/episodic_return']:.2f}")
    if "charts/SPS" in row:
        rates = "/".join(f"{row[f'time/SPS_{part}'] / 1000:.1f}k" for part in ("env", "policy", "learner"))
        parts.append(f"{row['charts/SPS']:,.0f} steps/s (env/policy/learner alone {rates})")
    return "  ".join([*parts, *lost(row)])


def lost(row: dict[str, float]) -> list[str]:
    """Return, where a row's losses are no numbers, that they are not; nothing otherwise.

    What computes nan goes on acting, and comes to what doing nothing comes to.
    """
    losses = [value for name, value in row.items() if name.endswith(("loss", "cross_entropy"))]
    bad = not all(map(math.isfinite, losses))
    return ["LOST: its losses are no numbers any more"] if bad else []

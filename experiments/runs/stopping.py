"""Ctrl-C that loses nothing: the first one asks, the second one insists."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Interrupted(KeyboardInterrupt):
    """Work was asked to stop and did, having written down what is done; `again` is what goes on with it."""

    def __init__(self, signal_number: int, again: str = "the same command") -> None:
        super().__init__(f"stopped; go on with: {again}")
        self.exit_code = 128 + signal_number


class StopRequest:
    """While entered, the first SIGINT, SIGTERM or SIGHUP sets `signal_number`; a second one acts at once.

    Outside the main thread signals cannot be caught, and nothing is changed.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

"""Graceful interruption: the first Ctrl-C stops after the current step, the second one immediately."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

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

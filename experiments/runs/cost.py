"""Measurement of runtime and memory use of this process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class ElapsedTime:
    """Runtime of a block of code in seconds."""

    wall: float = 0.0
    """Wall-clock time in seconds."""
    cpu: float = 0.0
    """CPU time of this process in seconds. It depends less on other processes than wall-clock time."""


@contextmanager
def stopwatch() -> Iterator[ElapsedTime]:
    """Yield an `ElapsedTime` that has the runtime of the `with` block when the block has ended."""
    _await_device()
    timing, wall, cpu = ElapsedTime(), time.perf_counter(), time.process_time()
    yield timing
    _await_device()
    timing.wall, timing.cpu = time.perf_counter() - wall, time.process_time() - cpu


def resident_bytes() -> int:
    """Return the current memory use of this process in bytes.

    If the system does not report the current memory use, return the peak memory use.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """Return the peak memory use of this process in bytes."""
    import resource  # not available on all systems

    # Darwin counts bytes, others kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _await_device() -> None:
    import torch  # imported late, so that it does not add to measured memory

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()

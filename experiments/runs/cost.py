"""What a piece of work costs: seconds, and memory of this process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Elapsed:
    """Seconds that a block of code took."""

    wall: float = 0.0
    """On the clock."""
    cpu: float = 0.0
    """Of this process's processor time, which neighbours on the machine disturb less."""


@contextmanager
def stopwatch() -> Iterator[Elapsed]:
    """Measure the block; the result is complete after it."""
    _await_device()
    elapsed, wall, cpu = Elapsed(), time.perf_counter(), time.process_time()
    yield elapsed
    _await_device()
    elapsed.wall, elapsed.cpu = time.perf_counter() - wall, time.process_time() - cpu


def resident_bytes() -> int:
    """Return the memory of this process now, or where the system does not tell, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """Return the most memory that this process had so far."""
    import resource  # not everywhere

    # Darwin counts bytes, others kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _await_device() -> None:
    import torch  # who measures memory alone must not fill it

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()

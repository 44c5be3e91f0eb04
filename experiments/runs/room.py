"""How much memory a stranger's run may take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOM = 2**31
"""Bytes for a run that nobody vouches for, beside what its own files hold."""


def check_room(needs: Mapping[str, int]) -> None:
    """Raise ValueError, naming the largest, if `needs`, bytes by what takes them, are more than `ROOM`."""
    total = sum(needs.values())
    if total > ROOM:
        largest = max(needs, key=lambda name: needs[name])
        raise ValueError(
            f"{largest}: takes about {_gibibytes(total)}, and a run that nobody vouches for "
            f"{_gibibytes(ROOM)} at most; add --trust if you trust the run (in Python trust=True)"
        )


@contextlib.contextmanager
def bounded(most: int) -> Iterator[None]:
    """While entered, let this process take `most` bytes more than it has; more raise MemoryError.

    Where the system has no such limit, as macOS, and beside a GPU, whose driver lays claim to more than it
    takes, nothing is changed.
    """
    taken = _taken()
    if taken is None or _has_gpu():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [taken + most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def available() -> int:
    """Return how many bytes of this machine's memory are free; at least `ROOM`, and that if nobody says."""
    return max(ROOM, _told("/proc/meminfo", "MemAvailable") or 0)


def _taken() -> int | None:
    return _told("/proc/self/status", "VmData")


def _told(file: str, name: str) -> int | None:
    """Return a number of kibibytes that Linux tells, in bytes."""
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"

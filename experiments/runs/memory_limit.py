"""Memory limit for untrusted runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

MEMORY_LIMIT = 2**31
"""Bytes that an untrusted run may take, besides the content of its files."""


def check_memory_limit(needs: Mapping[str, int]) -> None:
    """Raise ValueError if a run needs more than `MEMORY_LIMIT` bytes in total.

    `needs` is a dict from settings, such as `env.num_envs=8`, to the bytes that each setting needs. The
    error names the setting that needs most.
    """
    total = sum(needs.values())
    if total > MEMORY_LIMIT:
        largest = max(needs, key=lambda name: needs[name])
        raise ValueError(
            f"{largest}: with this setting the run needs about {_gibibytes(total)} of memory; the limit "
            f"for an untrusted run is {_gibibytes(MEMORY_LIMIT)}; add --trust if you trust the run "
            "(in Python trust=True)"
        )


@contextlib.contextmanager
def limit_memory(max_bytes: int) -> Iterator[None]:
    """Limit this process to `max_bytes` more memory than it uses now, in the `with` block.

    Allocations above the limit raise MemoryError. Does nothing if the system cannot limit memory, such as
    macOS. Also does nothing with a GPU, since a GPU driver reserves more memory than it uses.
    """
    used_bytes = _used_bytes()
    if used_bytes is None or _has_gpu():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [used_bytes + max_bytes, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def available_bytes() -> int:
    """Return the free memory in bytes. Return `MEMORY_LIMIT` if less is free, or if the value is unknown."""
    return max(MEMORY_LIMIT, _read_kibibytes("/proc/meminfo", "MemAvailable") or 0)


def _used_bytes() -> int | None:
    return _read_kibibytes("/proc/self/status", "VmData")


def _read_kibibytes(file: str, name: str) -> int | None:
    """Read a value that Linux reports in kibibytes, and return it in bytes; None if it is not available."""
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(values[0]) if values else None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"

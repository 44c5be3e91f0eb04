"""Resources of this process: memory limit for untrusted runs, device and threads of torch, measured cost."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEMORY_LIMIT = 2**31
"""Bytes that an untrusted run may take, besides the content of its files."""


CPU_SECONDS = 3600
"""CPU seconds that a command may spend on an untrusted run, on each thread of torch. `scrubjay eval` may
spend them on every 100 episodes. The recipes need less than a minute."""
MAX_ENVS = 4096
"""Environments that an untrusted run may create; more than any recipe, and created within seconds."""
MAX_PROCESSES = 64
"""Processes of environments that an untrusted run may start; an evaluation starts as many."""
_PROCESS_BYTES = 2**22
"""Least memory of a process of an environment; measured with CartPole."""
_PROCESS_FILES = 4
"""Files that this process opens for a process of an environment."""


def check_env_limits(num_envs: int, num_processes: int) -> None:
    """Raise ValueError if an untrusted run has more environments than `MAX_ENVS`, or `MAX_PROCESSES`."""
    for name, value, limit in (
        ("env.num_envs", num_envs, MAX_ENVS),
        ("env.subprocesses=True, env.num_envs", num_processes, MAX_PROCESSES),
    ):
        if value > limit:
            raise ValueError(
                f"{name}={value:,}: the limit for an untrusted run is {limit:,}; add --trust if you trust "
                "the run (in Python trust=True)"
            )


def check_processes(count: int) -> None:
    """Raise ValueError if this machine cannot start `count` processes of environments."""
    if count == 0:
        return
    limits = {"free memory": available_bytes() // _PROCESS_BYTES}
    with suppress(ImportError):  # Windows has no such limits
        import resource

        for name, kind, each in (
            ("open files, ulimit -n", resource.RLIMIT_NOFILE, _PROCESS_FILES),
            ("processes, ulimit -u", resource.RLIMIT_NPROC, 1),
        ):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                limits[name] = soft // each
    name = min(limits, key=lambda name: limits[name])
    if count > limits[name]:
        raise ValueError(
            f"env.subprocesses=True, env.num_envs={count:,}: the {name} of this machine is enough for "
            f"{limits[name]:,} processes; use fewer environments, or env.subprocesses=False"
        )


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


@contextmanager
def limit_memory(max_bytes: int) -> Iterator[None]:
    """Limit this process to `max_bytes` more memory than it uses now, in the `with` block.

    Allocations above the limit raise MemoryError. Does nothing if the system cannot limit memory, such as
    macOS. Also does nothing with a GPU, since a GPU driver reserves more memory than it uses.
    """
    import torch

    used_bytes = _read_kibibytes("/proc/self/status", "VmData")
    if used_bytes is None or torch.cuda.is_available():
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


class CPULimitError(RuntimeError):
    """Error: a block of code has used all of its CPU time."""


@contextmanager
def limit_cpu(seconds: float) -> Iterator[None]:
    """Raise CPULimitError once the `with` block has used `seconds` of CPU time on each thread of torch.

    Does nothing outside the main thread, where signals cannot be caught, and on Windows. Compiled code is
    interrupted only when it returns to Python.
    """
    import torch

    is_main = threading.current_thread() is threading.main_thread()
    if not (hasattr(signal, "SIGXCPU") and is_main and math.isfinite(seconds)):
        yield
        return
    limit = time.process_time() + seconds * torch.get_num_threads()
    main, end = threading.get_ident(), threading.Event()

    def watch() -> None:
        while (left := limit - time.process_time()) > 0:
            # With several threads CPU time passes faster than time.
            if end.wait(min(1.0, max(0.01, left / (os.cpu_count() or 1)))):
                return
        signal.pthread_kill(main, signal.SIGXCPU)

    def stop(*_: object) -> None:
        raise CPULimitError(f"took more than {seconds:,.0f} s of CPU time")

    # The system's own limit, RLIMIT_CPU, would leave the clock of CPU time with steps of 4 ms on Linux.
    watcher = threading.Thread(target=watch, name="scrubjay-cpu-limit", daemon=True)
    previous = signal.signal(signal.SIGXCPU, stop)
    try:
        watcher.start()
        yield
    finally:
        try:
            end.set()
            watcher.join()
        finally:
            signal.signal(signal.SIGXCPU, previous)


def available_bytes() -> int:
    """Return the free memory in bytes. Return `MEMORY_LIMIT` if less is free, or if the value is unknown."""
    return max(MEMORY_LIMIT, _read_kibibytes("/proc/meminfo", "MemAvailable") or 0)


def _read_kibibytes(file: str, name: str) -> int | None:
    """Read a value that Linux reports in kibibytes, and return it in bytes; None if it is not available."""
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(values[0]) if values else None


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def resolve_device(name: str) -> torch.device:
    """Return the torch device for auto, cpu, cuda, or another device name.

    Raises ValueError if torch does not know the name, or the device is not available.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":  # does not initialize the GPU
            is_available = (device.index or 0) < torch.cuda.device_count()
        else:
            is_available = torch.zeros(1, device=device).item() == 0
    except (RuntimeError, AssertionError, NotImplementedError):
        is_available = False
    if not is_available:
        why = "torch sees no such GPU here" if name.startswith("cuda") else "torch cannot compute on it"
        raise ValueError(f"device={name!r}: {why}; choose cpu or auto")
    return device


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one torch thread in the `with` block, unless OMP_NUM_THREADS is set.

    One thread is fastest for small policies.
    """
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


@contextmanager
def hide_warnings(name: str) -> Iterator[None]:
    """Hide the warnings of a logger inside the `with` block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


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
    # getrusage of Linux includes the memory of the process that started this one.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource  # not available on all systems

    # Darwin counts bytes, others kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _await_device() -> None:
    import torch  # imported late, so that it does not add to measured memory

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()

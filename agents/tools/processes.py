"""Child processes that parse foreign data under limits on time and memory.

The parsers of web pages are C libraries with quadratic paths, and a thread cannot be ended. A process can. A
child process answers many requests, so that a page costs no new process. It is replaced after a failure. The
child processes end with this process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from scrubjay.agents.language.prompts import LocalizedError

MAX_CPU_SECONDS = 5
"""Seconds of CPU time per request; honest pages of `WebConfig.max_bytes` take less."""
MAX_WALL_SECONDS = 30.0
"""Seconds per request, also where a system cannot limit the CPU time; other processes may delay a child."""
MAX_MEMORY = 2**30
"""Bytes of memory of a child process."""
MAX_PROCESSES = 4
"""Maximum number of child processes; further requests wait for a free one."""


class ChildError(LocalizedError):
    """A child process gave no result; `kind` is the type of its error, "TimeoutError" if it was too slow."""

    def __init__(self, name: str, /, kind: str, **values: object) -> None:
        super().__init__(name, **values)
        self.kind = kind


class Child:
    """A child process that answers requests, one at a time."""

    def __init__(self) -> None:
        # An empty entry of the path is the current folder, which must not offer modules.
        program = Path(__file__).with_name("extraction.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", program, *filter(None, sys.path)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal ends the parent, which then ends the child
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    @property
    def id(self) -> int:
        """Number that the system gave the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """True if the process can answer requests."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], content: bytes, seconds: float) -> bytes:
        """Return the content of the answer. After an error the child must be closed."""
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._process.kill()

        watch = threading.Timer(seconds, end)
        watch.daemon = True
        watch.start()
        try:
            with contextlib.suppress(OSError):  # a child that has ended gives no answer
                _write(self._requests, json.dumps({**request, "size": len(content)}).encode() + b"\n")
                _write(self._requests, content)
            line = self._answers.readline()
            head: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {"size": 1}
            result = _read(self._answers, head.get("size", 0))
        finally:
            watch.cancel()
        if "package" in head:
            raise ModuleNotFoundError(head["error"], name=head["package"])
        if "error" in head:
            error = f"{head['type']}: {head['error']}"
            raise ChildError("child_failed", kind=head["type"], error=error)
        if len(result) < head["size"]:
            status = self._process.wait()
            if is_late.is_set() or status == _CPU_STATUS:
                limits = {"cpu": request["cpu_seconds"], "seconds": f"{seconds:g}"}
                raise ChildError("child_late", kind="TimeoutError", **limits)
            raise ChildError("child_ended", kind="ChildProcessError", status=status)
        return result

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self.release()

    def release(self) -> None:
        """Close this process's ends of the pipes. The child ends when no process has them open."""
        self._requests.close()
        self._answers.close()


class Pool:
    """Child processes for the threads of this process."""

    def __init__(self) -> None:
        self.children: set[Child] = set()
        self._idle: list[Child] = []
        self._free = threading.BoundedSemaphore(MAX_PROCESSES)

    def run(
        self, task: str, content: bytes = b"", seconds: float = MAX_WALL_SECONDS, **arguments: Any
    ) -> bytes:
        """Return the result of a task of `extraction` with `content` and `arguments`.

        Raises ChildError if there is no result within the limits or after `seconds`. Raises
        ModuleNotFoundError if the task needs a package that is not installed.
        """
        request = {"task": task, "cpu_seconds": MAX_CPU_SECONDS, "memory": MAX_MEMORY, **arguments}
        with self._free:
            child = self._take()
            try:
                result = child.ask(request, content, seconds)
            except BaseException:
                self.children.discard(child)
                child.close()
                raise
            self._idle.append(child)
        return result

    def close(self) -> None:
        """End all child processes."""
        while self.children:
            self.children.pop().close()
        self._idle.clear()

    def reset_after_fork(self) -> None:
        """Forget the child processes, which belong to the process that was copied."""
        for child in self.children:
            child.release()
        self.__init__()

    def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.is_alive:
                return child
            self.children.discard(child)
            child.close()
        child = Child()
        self.children.add(child)
        return child


def _status_of_cpu_limit() -> int | None:
    """Return the exit status of a child that took too much CPU time; None on systems without this limit."""
    import signal

    return -signal.SIGXCPU if hasattr(signal, "SIGXCPU") else None


def _write(pipe: IO[bytes], content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[pipe.write(rest) :]


def _read(pipe: IO[bytes], size: int) -> bytes:
    """Return `size` bytes, or fewer if the pipe ends."""
    content = bytearray()
    while len(content) < size and (piece := pipe.read(size - len(content))):
        content += piece
    return bytes(content)


_CPU_STATUS = _status_of_cpu_limit()
pool = Pool()
run = pool.run
atexit.register(pool.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.reset_after_fork)

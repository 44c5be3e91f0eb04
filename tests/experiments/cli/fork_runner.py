"""Run the command in a forked child: real streams, signals and limits, without the startup time."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scrubjay.experiments.commands.main import main

MEMORY = 12 << 30
"""Memory limit of the child in bytes, so that huge sizes fail immediately and only there."""

PYTHON_MESSAGES = re.compile(
    "Traceback|internal error|NoneType|subscriptable|unhashable|positional argument|unexpected keyword|"
    "has no attribute|invalid literal|unsupported operand|codec can't|not supported between|not iterable|"
    "not JSON serializable|Exception ignored|index out of range|object is not|expected str instance|"
    "recursion depth|could not convert string|embedded null"
)
"""Messages of errors that no check of Scrubjay raised."""
_HEADING = re.compile(r"^\W*positional arguments\W*$", re.MULTILINE)
"""Heading in a help text."""


class CommandResult(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def run(
    words: list[str], folder: Path, stdin: bytes = b"", output: str | None = None, seconds: float = 4.0
) -> CommandResult:
    """Run the command in `folder`; send Ctrl-C after `seconds`, repeatedly until it ends.

    Args:
        words: Arguments after `scrubjay`.
        folder: Working directory.
        stdin: Standard input.
        output: Standard output: None to return it, "closed", "gone" (closed pipe), or a path.
        seconds: Time before Ctrl-C.
    """
    aside = folder.with_name(f"{folder.name}.streams")
    aside.mkdir(exist_ok=True)
    (aside / "in").write_bytes(stdin)
    child = os.fork()
    if child == 0:
        _be_the_command(words, folder, aside, output, seconds)
    deadline = time.monotonic() + 5 * seconds + 120
    result, status = 0, 0
    while not result and time.monotonic() < deadline:
        time.sleep(0.005)
        result, status = os.waitpid(child, os.WNOHANG)
    if not result:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    out, err = ((aside / name).read_bytes().decode("utf-8", "replace") for name in ("out", "err"))
    return CommandResult(os.waitstatus_to_exitcode(status), out, err)


def complaint(result: CommandResult) -> str | None:
    """Return the problem with the result of a command; None if it is fine."""
    if result.code not in (0, 1, 2, 130, 141):
        return f"exit code {result.code}"
    # Libraries that read models have their own messages, which follow ours.
    output = _HEADING.sub("", result.out) + re.sub(r" \(.*\); copy it again", "", result.err)
    if message := PYTHON_MESSAGES.search(output):
        return f"says {message[0]!r}"
    if result.code in (1, 2):
        ours = [line for line in result.err.splitlines() if line.startswith("scrubjay: ")]
        if len(ours) != 1:
            return f"{len(ours)} lines say what is wrong"
        if len(ours[0]) < 20:
            return "the line says nothing"
    return None


def _be_the_command(words: list[str], folder: Path, aside: Path, output: str | None, seconds: float) -> None:
    code = 99
    # Native objects of the parent, such as those of Ray, must not be destroyed without its threads.
    gc.freeze()
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(aside / "in", os.O_RDONLY), 0)
        out = os.open(aside / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(aside / "err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(_writable(out, output), 1)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        if output == "closed":
            os.close(1)
            sys.stdout = None  # type: ignore[assignment]  # as the interpreter has it then
        warnings.resetwarnings()
        limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, limit))
        _press_ctrl_c(seconds)
        code = main(words)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BaseException:  # noqa: BLE001  (no error may return into pytest)
        with contextlib.suppress(BaseException):
            os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


def _writable(out: int, output: str | None) -> int:
    if output == "gone":
        reader, writer = os.pipe()
        os.close(reader)
        return writer
    return out if output in (None, "closed") else os.open(output, os.O_WRONLY)


def _press_ctrl_c(seconds: float) -> None:
    press: Callable[..., None] = lambda *_: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

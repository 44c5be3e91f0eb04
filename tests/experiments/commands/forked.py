"""The command in a child of this process: real streams, signals and limits, without a start's seconds."""

from __future__ import annotations

import contextlib
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

from scrubjay.experiments.cli import main

MEMORY = 12 << 30
"""Bytes that a child may ask for: sizes of a thousand million fail at once, and alone."""

PYTHONS_OWN_WORDS = re.compile(
    "Traceback|unforeseen|NoneType|subscriptable|unhashable|positional argument|unexpected keyword|has no "
    "attribute|invalid literal|unsupported operand|codec can't|not supported between|not iterable|not JSON "
    "serializable|Exception ignored|index out of range|object is not|expected str instance|recursion depth|"
    "could not convert string|embedded null"
)
"""What an error says that no check of ours raised."""
_HEADING = re.compile(r"^\W*positional arguments\W*$", re.MULTILINE)
"""Of a help."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(
    words: list[str], folder: Path, typed: bytes = b"", output: str | None = None, seconds: float = 4.0
) -> Ended:
    """Run the words in `folder`, and press Ctrl-C after `seconds`, as often as it takes.

    Args:
        words: After `scrubjay`.
        folder: Where to stand.
        typed: The standard input.
        output: Where the standard output goes: None to be returned, "closed", "gone" (its reader), or a path.
        seconds: Time before Ctrl-C.
    """
    aside = folder.with_name(f"{folder.name}.streams")
    aside.mkdir(exist_ok=True)
    (aside / "in").write_bytes(typed)
    child = os.fork()
    if child == 0:
        _be_the_command(words, folder, aside, output, seconds)
    deadline = time.monotonic() + 5 * seconds + 20
    ended, status = 0, 0
    while not ended and time.monotonic() < deadline:
        time.sleep(0.005)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    out, err = ((aside / name).read_bytes().decode("utf-8", "replace") for name in ("out", "err"))
    return Ended(os.waitstatus_to_exitcode(status), out, err)


def complaint(ended: Ended) -> str | None:
    """Return what is wrong with how a command ended, None if nothing is."""
    if ended.code not in (0, 1, 2, 130, 141):
        return f"exit code {ended.code}"
    # What reads models of others has its own words, which stand behind ours.
    said = _HEADING.sub("", ended.out) + re.sub("; copy it anew: .*", "", ended.err)
    if told := PYTHONS_OWN_WORDS.search(said):
        return f"says {told[0]!r}"
    if ended.code in (1, 2):
        ours = [line for line in ended.err.splitlines() if line.startswith("scrubjay: ")]
        if len(ours) != 1:
            return f"{len(ours)} lines say what is wrong"
        if len(ours[0]) < 20:
            return "the line says nothing"
    return None


def _be_the_command(words: list[str], folder: Path, aside: Path, output: str | None, seconds: float) -> None:
    code = 99
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
    except BaseException:  # noqa: BLE001  (nothing may come back into pytest)
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

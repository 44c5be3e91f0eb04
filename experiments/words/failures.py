"""What the command says when something fails: one line, whatever it was."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback

from scrubjay.experiments.words.foreign import one_line

TRACEBACK = "SCRUBJAY_TRACEBACK"
"""Environment variable that lets errors through as Python shows them."""
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")


class UsageError(ValueError):
    """What the user typed cannot be done; the message is one line that says why and what can."""


class FailedError(RuntimeError):
    """Something went wrong on the way, such as another process; the message is one line that says what."""


def describe(error: BaseException) -> str:
    """Return in one line what an error says, of files and of memory better than it does itself."""
    if lacks_memory(error):
        return f"there is not enough memory: {one_line(error) or 'smaller sizes need less'}"
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start : error.start + 1].hex()
        return f"a text is not {error.encoding.upper()}: byte 0x{byte} at {error.start}; write it as UTF-8"
    if isinstance(error, OSError) and error.strerror:
        where = "standard output" if error.filename is None else error.filename
        return one_line(f"{os.fsdecode(where) if isinstance(where, bytes) else where}: {error.strerror}")
    return one_line(error) or type(error).__name__


def lacks_memory(error: BaseException) -> bool:
    """Return whether memory of the machine or of its GPU was too small, for which torch has many words."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def report(error: BaseException) -> int:
    """Tell on stderr what ended the command, and return its exit code.

    2 for bad input, 1 for what failed on the way, 130 for Ctrl-C, and 141, without a word, where who read the
    output has gone. Raises the error again where the environment has SCRUBJAY_TRACEBACK.
    """
    if isinstance(error, BrokenPipeError):
        return 141
    if isinstance(error, KeyboardInterrupt):
        return _say("\nstopped", 130)
    if os.environ.get(TRACEBACK):
        raise error
    if isinstance(error, UsageError):
        return _say(f"scrubjay: {one_line(error)}", 2)
    if isinstance(error, FailedError):
        return _say(f"scrubjay: {one_line(error)}", 1)
    advice = "".join(f"; {one_line(note)}" for note in getattr(error, "__notes__", ()))
    if lacks_memory(error) or (isinstance(error, OSError) and error.strerror):
        return _say(f"scrubjay: {describe(error)}{advice}", 1)
    return _say(f"scrubjay: unforeseen {type(error).__name__}: {one_line(error)}{advice} ({_kept(error)})", 1)


def _say(line: str, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):  # then nobody can be told
        print(line, file=sys.stderr, flush=True)
    return code


def _kept(error: BaseException) -> str:
    """Write the whole traceback to a file of its own, and say where it is."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="replace", prefix="scrubjay-", suffix=".txt", delete=False
        ) as file:
            file.writelines(traceback.format_exception(error))
    except OSError:
        return f"{TRACEBACK}=1 shows its traceback"
    return f"its traceback: {file.name}"

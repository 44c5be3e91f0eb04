"""Errors of settings, and error reporting of the command: one line on stderr for every failure."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator

from scrubjay.experiments.cli.untrusted_text import one_line

TRACEBACK = "SCRUBJAY_TRACEBACK"
"""Environment variable; if set, errors propagate with their traceback."""
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")


class UsageError(ValueError):
    """Invalid command-line input. The message is one line with the reason and the fix."""


class FailedError(RuntimeError):
    """A failure at run time, for example of a child process. The message is one line."""


class BrokenEnvError(RuntimeError):
    """Error raised by an environment's own code. It is not bad input, so its traceback is kept."""

    @classmethod
    def from_error(cls, name: str, error: Exception) -> BrokenEnvError:
        """Return the error for an exception of the environment `name`."""
        return cls(f"environment {str(name)!r} raised {type(error).__name__}: {error}")


def check_at_least(settings: object, least: int, *names: str) -> None:
    """Raise ValueError, with name and value, unless each of the fields `names` is at least `least`."""
    for name in names:
        value = getattr(settings, name)
        if not value >= least:
            bound = f"must be at least {least}" if least else "must not be negative"
            raise ValueError(f"{name}={value}: {bound}")


def describe(error: BaseException) -> str:
    """Describe an error in one line, with clearer texts for file and out-of-memory errors."""
    if is_out_of_memory(error):
        return f"out of memory: {one_line(error) or 'use smaller sizes'}"
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start : error.start + 1].hex()
        return (
            f"text is not valid {error.encoding.upper()}: byte 0x{byte} at {error.start}; encode it as UTF-8"
        )
    if isinstance(error, UnicodeEncodeError):  # a word of the command line that is not UTF-8
        part = error.object[error.start : error.end]
        return f"{part!a} is not valid UTF-8; choose another name or text"
    if isinstance(error, OSError) and error.strerror:
        where = "standard output" if error.filename is None else error.filename
        return one_line(f"{os.fsdecode(where) if isinstance(where, bytes) else where}: {error.strerror}")
    return one_line(error) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for out-of-memory errors of the CPU or GPU; torch raises several kinds."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def report(error: BaseException) -> int:
    """Print the error that ended the command on stderr and return the exit code.

    The code is 2 for bad input, 1 for a failure at run time, 130 for Ctrl-C, and 141 (silently) for a closed
    output pipe. The error is raised again if the environment variable SCRUBJAY_TRACEBACK is set.
    """
    if isinstance(error, BrokenPipeError):
        return 141
    if isinstance(error, KeyboardInterrupt):
        return _print_error("\nstopped", 130)
    if os.environ.get(TRACEBACK):
        raise error
    if isinstance(error, UsageError):
        return _print_error(f"scrubjay: {one_line(error)}", 2)
    if isinstance(error, SystemExit):  # of a module of the user; Scrubjay raises HelpShown
        from scrubjay.agents.rl.exits import describe_exit

        return _print_error(f"scrubjay: {one_line(describe_exit(error))}", 1)
    if isinstance(error, FailedError):
        return _print_error(f"scrubjay: {one_line(error)}", 1)
    advice = "".join(f"; {one_line(note)}" for note in getattr(error, "__notes__", ()))
    if is_out_of_memory(error) or (isinstance(error, OSError) and error.strerror):
        return _print_error(f"scrubjay: {describe(error)}{advice}", 1)
    message = f"{one_line(error)}{advice} ({_write_traceback(error)})"
    if isinstance(error, BrokenEnvError):
        return _print_error(f"scrubjay: {message}", 1)
    return _print_error(f"scrubjay: internal error: {type(error).__name__}: {message}", 1)


def _print_error(line: str, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):  # stderr is closed
        print(line, file=sys.stderr, flush=True)
    return code


def _write_traceback(error: BaseException) -> str:
    """Write the traceback to a temporary file and return a note with its path."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="replace", prefix="scrubjay-", suffix=".txt", delete=False
        ) as file:
            file.writelines(traceback.format_exception(error))
    except OSError:
        return f"set {TRACEBACK}=1 to see the traceback"
    return f"traceback: {file.name}"


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Convert errors caused by invalid input to UsageError; other errors keep their traceback."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BrokenPipeError) or not (_is_input_error(error) or is_out_of_memory(error)):
            raise
        raise UsageError(describe(error)) from error


def _is_input_error(error: Exception) -> bool:
    """Return True for the error types that input validation raises."""
    if isinstance(error, ValueError | TypeError | OSError | ImportError):
        return True
    if "gymnasium" not in sys.modules:  # do not import it only for this check
        return False
    from gymnasium.error import Error

    return isinstance(error, Error)

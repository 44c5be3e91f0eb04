"""Exits of user code: sys.exit in a module of the user must not end training silently."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

EXITS = (SystemExit, EOFError, ConnectionError)
"""Errors of an environment that ends, or whose process or server ends.

An uncaught SystemExit(0) would look like success, and a BrokenPipeError like a closed standard output.
"""
_LIBRARY = Path(sysconfig.get_paths()["stdlib"])


class EnvExitError(RuntimeError):
    """Error for an environment that called sys.exit, or whose process or connection ended."""

    @classmethod
    def from_error(cls, error: BaseException) -> EnvExitError:
        """Return the error for a SystemExit, EOFError or ConnectionError of an environment."""
        if isinstance(error, SystemExit):
            return cls(describe_exit(error))
        return cls(f"{type(error).__name__}: {error}; a process or a connection of it may have ended")


def describe_exit(error: BaseException) -> str:
    """Describe where code of the user raised SystemExit or KeyboardInterrupt."""
    frames = traceback.extract_tb(error.__traceback__)
    # Code such as argparse exits for its caller.
    own = [frame for frame in frames if not _is_library(Path(frame.filename))] or frames
    # Weights & Biases replaces sys.exit by a method that calls it.
    while len(own) > 1 and own[-1].name == "exit" and "site-packages" in Path(own[-1].filename).parts:
        own.pop()
    place = f"{own[-1].filename}, line {own[-1].lineno}" if own else "unknown code"
    what = f"exit code {error.code!r}" if isinstance(error, SystemExit) else "no Ctrl-C"
    return f"{place} raised {type(error).__name__} ({what}), which must not end the process"


def _is_library(file: Path) -> bool:
    return _LIBRARY in file.parents and "site-packages" not in file.parts

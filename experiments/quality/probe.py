"""What probes have in common on a command line: options, one thread, a report, and errors in a line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import tyro

from scrubjay.experiments.runs.device import one_thread
from scrubjay.experiments.runs.stopping import Interrupted

Options = TypeVar("Options")


def run_probe(
    name: str,
    options: type[Options],
    about: str | None,
    run: Callable[[Options, str], Path | Iterable[object]],
) -> int:
    """Run the probe `quality.NAME` with options of the command line; return the exit code.

    `run` is given the options and the command, which a report names, and returns the report's file, or lines.
    Whoever stops it is told that the same command goes on.
    """
    given = tyro.cli(options, description=about)
    command = shlex.join(["python", "-P", "-m", f"scrubjay.experiments.quality.{name}", *sys.argv[1:]])
    try:
        with one_thread():
            told = run(given, command)
            print(told.read_text() if isinstance(told, Path) else "\n".join(map(str, told)))
    except KeyboardInterrupt as stop:
        print("\nstopped; the same command goes on")
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0

"""Command-line runner of the probes: options, one thread, a report, and one-line errors."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import tyro

from scrubjay.experiments.progress import GracefulInterrupt
from scrubjay.experiments.resources import one_thread

Options = TypeVar("Options")


def run_probe(
    name: str,
    options: type[Options],
    about: str | None,
    run: Callable[[Options, str], Path | Iterable[object]],
) -> int:
    """Run the probe `quality.NAME` with options from the command line; return the exit code.

    `run` takes the parsed options and the command line, which the report quotes. It returns the path of the
    report or the lines of the report. Ctrl-C prints a message that the same command resumes the run.
    """
    parsed_options = tyro.cli(options, description=about)
    command = shlex.join(["python", "-P", "-m", f"scrubjay.experiments.quality.{name}", *sys.argv[1:]])
    try:
        with one_thread():
            result = run(parsed_options, command)
            print(result.read_text() if isinstance(result, Path) else "\n".join(map(str, result)))
    except KeyboardInterrupt as stop:
        print("\nstopped; run the same command to resume")
        return stop.exit_code if isinstance(stop, GracefulInterrupt) else 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0

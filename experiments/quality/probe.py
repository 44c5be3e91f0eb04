"""Runner of the probes: options, one thread, rows that survive an interruption, a report, one-line errors."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import tyro

from scrubjay.experiments.files import release_folders, write_atomically
from scrubjay.experiments.measurements import header, prepare_results_dir
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
    finally:
        release_folders()
    return 0


def prepare_out(options: Any, free: Collection[str] = ()) -> None:
    """Prepare the directory `options.out` for results; only the options in `free` may differ between runs.

    Raises ValueError if the directory holds results of other options.
    """
    free = {*free, "out", "quiet"}
    prepare_results_dir(options.out, {name: v for name, v in vars(options).items() if name not in free})


def write_report(path: Path, command: str, *parts: str) -> Path:
    """Write a report: the context of the results, then the parts, separated by empty lines; return `path`."""
    write_atomically(path, "\n\n".join([header(command), *parts]) + "\n")
    return path

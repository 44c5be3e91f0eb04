"""Status of a run. result.json holds scores of a finished run, or says why training ended before its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.files import CONFIG, RESULT, read_object, write_atomically

Status = Literal["finished", "stopped early", "failed", "unfinished"]


def read_status(run_dir: Path) -> Status:
    """Return the status of a run directory.

    A run is unfinished without result.json. A result without the field `status` holds scores; a damaged one
    counts as finished, and `Run.result` reports the damage.
    """
    try:
        status = read_object(run_dir / RESULT).get("status")
    except FileNotFoundError:
        return "unfinished"
    except (OSError, ValueError):
        return "finished"
    return status if status in ("stopped early", "failed") else "finished"


def write_status(
    run_dir: Path, status: Literal["stopped early", "failed"], step: int, error: object = ""
) -> None:
    """Write a result.json without scores, unless the run has a result.

    `step` is the number of steps of training, and `error` the reason of a failure.
    """
    if read_status(run_dir) == "unfinished":
        fields = {"status": status, "step": step, **({"error": one_line(error)} if error else {})}
        write_atomically(run_dir / RESULT, json.dumps(fields, indent=2) + "\n")


def list_nearby_runs(path: Path) -> str:
    """Return text that lists the runs in `path`, or else in its parent folder; empty if there are none."""
    for folder in (path, path.parent):
        names = sorted(child.parent.name for child in folder.glob(f"*/{CONFIG}"))
        if names:
            return f"; runs in {folder}: {', '.join(names)}"
    return ""

"""Provenance of measurements: Scrubjay version and processor."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from scrubjay._version import __version__


def version() -> str:
    """Return the version of Scrubjay, with its commit if run from a git clone."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    ).stdout.strip()
    return f"scrubjay {__version__}{f' at {commit}' if commit else ''}"


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )

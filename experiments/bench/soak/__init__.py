"""Soak: long work under kills. Nothing that was acknowledged is lost, and memory stays flat.

`python -P -m scrubjay.experiments.bench.soak` runs its parts: two processes in one run directory (`runs`), a
bank of a million records (`bank`) and segments of 100,000 steps (`segments`).
"""

from __future__ import annotations

from pathlib import Path


class SoakError(Exception):
    """Something was lost, or differs from what was written."""


def anonymous_bytes(process: int | str = "self") -> int:
    """Return the memory of a process that belongs to no file, in bytes.

    A bank maps its file into memory. The pages of the file count as resident, but the system takes them back
    whenever it needs memory. They are left out here.
    """
    lines = Path(f"/proc/{process}/status").read_text("utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))

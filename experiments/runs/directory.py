"""The files of a run directory, by name, and how they are written and locked."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import IO

_log = logging.getLogger(__name__)

CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"


def lock(path: Path) -> IO[str]:
    """Return an open file that keeps every other process from training this run until it is closed.

    The system lets go of it however the process ends. Raises ValueError if another one holds it. On NFS it
    holds between machines where the server keeps locks, as NFS 4 does; one that keeps none is warned of.
    """
    file = (path / ".lock").open("w")
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; there it is left to the user
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some NFS say it with the second
        file.close()
        raise ValueError(f"{path} is being trained by another process; wait for it or stop it") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            file.close()
            raise
        _log.warning("%s: this file system keeps no locks; train it by one process at a time", path)
    return file


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a kill leaves the old one or the new one, never half."""
    aside = path.with_name(f".{path.name}.writing")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)

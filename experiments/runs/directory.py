"""The files of a run directory, by name, and how they are written and locked."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path
from typing import IO

_log = logging.getLogger(__name__)

CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
CURVE = "curve.png"
ENVIRONMENT = "environment.json"
INITIAL = "initial.safetensors"
"""Weights of another run that this one began with."""
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


def check_name(path: Path) -> None:
    """Raise ValueError if a path is no text, as bytes of another encoding are not: TensorBoard opens none."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} is no text in UTF-8; give the folder another name") from None


def check_files(path: Path) -> None:
    """Raise ValueError if there is anything but plain files and folders below `path`.

    A run writes into its directory, and through a link it would write elsewhere.
    """
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            try:
                mode = os.lstat(os.path.join(folder, name)).st_mode
            except FileNotFoundError:  # whoever trains it has put it away meanwhile
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(
                    f"{os.path.join(folder, name)} is a link, or no plain file: a run keeps what is its own; "
                    "put the file itself there, or of a run that you trust add --trust (in Python trust=True)"
                )


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a kill leaves the old one or the new one, never half."""
    aside = path.with_name(f".{path.name}.writing")
    aside.unlink(missing_ok=True)
    with aside.open("x") as file:  # through no link that somebody left there
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)

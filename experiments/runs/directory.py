"""File names of a run directory, with locking and atomic writes."""

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
"""Initial weights, copied from another run."""
CHECKPOINTS = "checkpoints"


def lock(path: Path) -> IO[str]:
    """Lock a run for training; return an open file that holds the lock until it is closed.

    The system releases the lock when the process ends. Raises ValueError if another process holds the lock.
    On NFS the lock also works between machines if the server supports locks, as NFS 4 does. If the file
    system has no locks, a warning is logged.
    """
    file = (path / ".lock").open("w")
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some NFS servers raise PermissionError
        file.close()
        raise ValueError(f"{path} is being trained by another process; wait for it or stop it") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            file.close()
            raise
        _log.warning(
            "%s: this file system does not support locks; train the run in one process at a time", path
        )
    return file


def check_name(path: Path) -> None:
    """Raise ValueError if a path is not valid UTF-8; TensorBoard cannot open such a path."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} is not valid UTF-8; give the folder another name") from None


def check_files(path: Path) -> None:
    """Raise ValueError if there is anything but regular files and folders below `path`.

    Through a link, a run would write to files outside its directory.
    """
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            try:
                mode = os.lstat(os.path.join(folder, name)).st_mode
            except FileNotFoundError:  # the process that trains it deleted the file meanwhile
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(
                    f"{os.path.join(folder, name)} is a link or a special file; a run directory must have "
                    "plain files. Copy the file there, or pass --trust (trust=True in Python) to trust it"
                )


def write_atomically(path: Path, text: str) -> None:
    """Write a small file atomically: if the process is killed, the file has its old or its new content."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.unlink(missing_ok=True)
    with temporary.open("x") as file:  # fails on an existing link
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)

"""Files of runs and results: names, locks, atomic writes, and readers of JSON that may be untrusted."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import logging
import math
import os
import secrets
import shutil
import stat
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_log = logging.getLogger(__name__)

CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
CURVE = "curve.png"
ENVIRONMENT = "environment.json"
INITIAL = "initial.safetensors"
"""Initial weights, copied from another run."""
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


def create_run_files(path: Path, contents: Mapping[str, str | bytes | None], resume_command: str) -> None:
    """Write the first files of a run into the directory `path`, which is created if necessary.

    `contents` are the contents of `INITIAL`, `ENVIRONMENT` and `CONFIG`; None means no file. The config is
    written last, so that a directory with a config is complete. Raises ValueError, which names
    `resume_command`, if the directory already holds a run, or files of a run without a config.
    """
    _check_name(path)
    path.mkdir(parents=True, exist_ok=True)
    check_files(path)
    with lock(path):  # if two processes start at once, the second one sees the config of the first
        if (path / CONFIG).exists():
            raise ValueError(f"{path} already holds a run; choose another directory, or: {resume_command}")
        # Leftovers of an unknown run would be resumed from, or overwritten.
        for name in (CHECKPOINTS, METRICS, RESULT):
            if (path / name).exists():
                raise ValueError(f"{path} holds {name} of a run but no {CONFIG}; choose another directory")
        for name in (INITIAL, ENVIRONMENT, CONFIG):
            (path / name).unlink(missing_ok=True)  # a leftover of a start that was killed
            if (content := contents[name]) is not None:
                write_atomically(path / name, content)


def lock(path: Path) -> IO[str]:
    """Lock a run for training; return an open file that holds the lock until it is closed.

    The system releases the lock when the process ends. A process that is forked meanwhile, such as an
    environment in a process of its own, does not hold the lock. Raises ValueError if another process holds
    the lock, or if TensorBoard cannot open the path. On NFS the lock also works between machines if the
    server supports locks, as NFS 4 does. If the file system has no locks, a warning is logged.
    """
    _check_name(path)
    return _lock(path, "is being trained by another process; wait for it or stop it", "train the run in")


_folders: dict[Path, IO[str]] = {}
"""Open lock files of the folders that this process owns."""


def own_folder(path: Path) -> None:
    """Create a folder for results, and lock it until `release_folders` or the end of the process.

    Two commands in one folder would overwrite each other's tables and write rows twice. The lock works as in
    `lock`. Raises ValueError if another process owns the folder.
    """
    path.mkdir(parents=True, exist_ok=True)
    key = path.resolve()
    if key not in _folders:
        use = "is in use by another command; wait for it, stop it, or choose another --out"
        _folders[key] = _lock(path, use, "use the folder in")


def release_folders() -> None:
    """Release the folders that this process owns."""
    while _folders:
        _folders.popitem()[1].close()


_locks: weakref.WeakSet[IO[str]] = weakref.WeakSet()
"""Lock files of this process, open or closed."""


def _drop_locks() -> None:
    """Close the lock files in a forked process: it would hold the locks after a kill of its parent."""
    for file in _locks:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks)


def _lock(path: Path, in_use: str, without_locks: str) -> IO[str]:
    """Lock a folder; `in_use` is the text of the error, `without_locks` begins the advice of the warning."""
    file = open_without_links(path / LOCK)
    _locks.add(file)
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some NFS servers raise PermissionError
        file.close()
        raise ValueError(f"{path} {in_use}") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            file.close()
            raise
        _log.warning(
            "%s: this file system does not support locks; %s one process at a time", path, without_locks
        )
    return file


def _check_name(path: Path) -> None:
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


_LEFTOVER_SECONDS = 3600.0
"""Age at which the temporary file of a write counts as a leftover of a killed process."""


def write_atomically(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write a file atomically: if the process is killed, the file has its old or its new content.

    Several processes may write the same file; the last one wins. `mode` are the permissions of a new file,
    before the umask. A link is replaced, as in `replacement`.
    """
    with replacement(path, mode) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacement(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield the path of a new, empty file beside `path`. It replaces `path` at the end of the `with` block.

    If `path` is a symbolic or hard link, only this name changes: the file's content stays under its other
    names. After an error in the block, `path` is unchanged. Raises OSError if `path` cannot be written, and
    ValueError if it is a pipe or a device.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        kind = os.lstat(path).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
            raise ValueError(f"{path} is not a regular file; choose another name")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.writing"):
        with contextlib.suppress(OSError):  # another process may have deleted it
            if time.time() - leftover.lstat().st_mtime > _LEFTOVER_SECONDS:
                leftover.unlink()
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.writing")
    try:
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))  # fails on an existing link
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        yield new
        with new.open("r+b") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def open_to_append(path: Path) -> IO[str]:
    """Open a text file of a run to append to it, or to truncate it; create it if it does not exist.

    A symbolic or hard link is first replaced by a copy, so that the file keeps its content under its other
    names. Raises ValueError if the path is not a regular file, or if a file to copy is larger than
    `MAX_LINES_BYTES`.
    """
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode) or status.st_nlink > 1:
            with (
                _open_regular(path, MAX_LINES_BYTES) as old,
                replacement(path) as new,
                new.open("wb") as copy,
            ):
                shutil.copyfileobj(old, copy)
    return open_without_links(path)


def open_without_links(path: Path) -> IO[str]:
    """Open a regular file to append to it; create it if it does not exist. The content does not change.

    Raises ValueError if the path is a symbolic link or not a regular file. Windows cannot refuse links.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _AT_ONCE | getattr(os, "O_NOFOLLOW", 0)
    try:
        file = open(  # noqa: SIM115  (the caller closes it)
            path, "a", encoding="utf-8", opener=lambda name, _: os.open(name, flags, 0o666)
        )
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO):  # of links and of pipes
            raise
        raise ValueError(f"{path} is a link or a special file; delete it") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path} is a link or a special file; delete it")
    return file


MAX_BYTES = 2**26
"""Maximum size of a file with one object; the largest stores the bounds of all observation elements."""
MAX_LINES_BYTES = 2**28
"""Maximum size of a JSON-lines file, about half a million updates."""
MAX_LINES = 2**20
"""Maximum number of lines of a JSON-lines file. Short lines take a hundred times their size in memory."""
MAX_LINE = 2**20
"""Maximum length of a line of a JSON-lines file, in characters."""
MAX_TEXT_BYTES = 2**30
"""Maximum size of a text."""
_PIECE_BYTES = 2**20

_AT_ONCE = getattr(os, "O_NONBLOCK", 0)


class Fields(dict[str, Any]):
    """JSON object. A missing field raises ValueError, which names the source and, if known, a remedy."""

    def __init__(self, values: dict[str, Any], source: object, remedy: str = "") -> None:
        super().__init__(values)
        self.source, self.remedy = source, remedy

    def __missing__(self, name: str) -> Any:
        if self.remedy:
            raise ValueError(f"{self.source} lacks {name}: {self.remedy}")
        raise ValueError(f"{self.source} is damaged: it lacks {name}")


def parse(text: str, source: object, on_pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON text. Raises ValueError, naming `source`, if it is not valid JSON.

    `on_pairs` makes an object of its pairs; None stands for `dict`.
    """
    try:
        return json.loads(text, object_pairs_hook=on_pairs)
    except RecursionError:
        raise ValueError(f"{source} is not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}") from None


def parse_object(text: str, source: object) -> Fields:
    """Parse a JSON object. Raises ValueError, naming `source`, if the text is not a JSON object."""
    value = parse(text, source)
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004  (the error is about the content of a file)
            f"{source} is damaged: it holds {value!r:.40} instead of a JSON object"
        )
    return Fields(value, source)


def read_object(path: Path) -> Fields:
    """Read a JSON object from a file. Raises ValueError on other content, and OSError if reading fails."""
    return parse_object(read_untrusted(path), path)


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a text from a file or a pipe.

    Raises ValueError, naming the file, if it is not UTF-8, has a zero byte, or is larger than `max_bytes`.
    Raises OSError if reading fails.
    """
    with path.open("rb") as file:
        return _decode(_read_nonzero(file, max_bytes, path), path)


def read_untrusted(path: Path, max_bytes: int = MAX_BYTES, zeros: bool = True) -> str:
    """Read a text file of a run or a measurement, which may be untrusted.

    Without `zeros` a zero byte is an error. A large file of holes is then refused after its first bytes.
    Raises ValueError, naming the file, if it is not UTF-8, not a regular file, or larger than `max_bytes`.
    Raises OSError if reading fails.
    """
    with _open_regular(path, max_bytes) as file:
        return _decode(file.read(max_bytes + 1) if zeros else _read_nonzero(file, max_bytes, path), path)


def _read_nonzero(file: IO[bytes], max_bytes: int, path: Path) -> bytearray:
    """Return the content of a file. Raises ValueError if it has a zero byte, or more than `max_bytes`."""
    data = bytearray()
    while piece := file.read(_PIECE_BYTES):
        if (place := piece.find(0)) >= 0:
            raise ValueError(f"{path} is not a text: byte {len(data) + place:,} is zero")
        data += piece
        if len(data) > max_bytes:
            raise ValueError(f"{path} has more than {max_bytes:,} bytes, the limit; split it")
    return data


def _open_regular(path: Path, max_bytes: int) -> IO[bytes]:
    """Open a file to read it. Raises ValueError if it is not a regular file, or larger than `max_bytes`."""
    # Open a pipe without blocking, and then reject it. The caller closes the file.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _AT_ONCE))  # noqa: SIM115
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= max_bytes:
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
    raise ValueError(f"{path} has {status.st_size:,} bytes: the limit is {max_bytes:,}")


def read_lines(path: Path) -> list[Fields]:
    """Return the objects in a JSON-lines file; return an empty list if the file does not exist.

    An incomplete last line is skipped. Raises ValueError, naming the line, if any other line holds no object,
    or if there are too many lines or one is too long.
    """
    try:
        text = read_untrusted(path, MAX_LINES_BYTES)
    except FileNotFoundError:
        return []
    if (count := text.count("\n")) > MAX_LINES:
        raise ValueError(f"{path} has {count:,} lines: the limit is {MAX_LINES:,}")
    objects = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        if len(line) > MAX_LINE:
            raise ValueError(
                f"line {number} of {path} has {len(line):,} characters: the limit is {MAX_LINE:,}"
            )
        if line.strip():
            objects.append(parse_object(line, f"line {number} of {path}"))
    return objects


def read_numbers(path: Path) -> Fields:
    """Read an object of numbers from a JSON file. Raises ValueError on other content."""
    return check_numbers(read_object(path))


def check_numbers(fields: Fields) -> Fields:
    """Return `fields`. Raises ValueError unless all values are numbers that a float can represent."""
    for name, value in fields.items():
        if not is_number(value):
            raise ValueError(f"{fields.source} is damaged: {name}={value!r:.40} is not a number")
    return fields


def _decode(data: bytes | bytearray, path: Path) -> str:
    try:
        # Universal newlines, as in text mode.
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid UTF-8: byte {error.start} is invalid") from None


def is_number(value: Any) -> bool:
    """Return True if a value is a JSON number, including NaN, that a float can represent."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        math.isnan(value)
    except OverflowError:
        return False
    return True

"""Cache of help texts and completion words, in the user's cache folder.

Help of a recipe needs torch and takes seconds; a stored text takes milliseconds. An entry holds the version,
the interpreter and the times of all source files, and is ignored after any of them changes. The cache only
saves time: a missing, damaged or unwritable file is ignored.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scrubjay import _version

T = TypeVar("T")

_MAX_ENTRIES = 200
_SILENT_SECONDS = 3.0
_PROGRESS = "scrubjay: preparing this text; it is stored, so the next call is fast"
_REGISTRIES = ("scrubjay.agents", "scrubjay.envs", "scrubjay.memory")


def load_or_build(key: Sequence[str], build: Callable[[], T]) -> T:
    """Return the stored value of `key`; otherwise build the value and store it as JSON."""
    value = load(key)
    if value is None:
        with show_progress():
            value = build()
        store(key, value)
    return value


def begin() -> None:
    """Decide whether the cache is used for one command line; until this call it is not.

    It is not used if the process has imported components before, since it may have registered its own.
    """
    _state.is_used = sys.modules.keys().isdisjoint(_REGISTRIES)


class _State:
    is_used = False


_state = _State()


def display_key(arguments: Sequence[str]) -> list[str]:
    """Return the key of a text for the current terminal: its width, colors and encoding belong to it."""
    variables = {name: os.environ[name] for name in sorted(os.environ) if name.startswith("PYTHON_TYRO")}
    terminal = [shutil.get_terminal_size().columns, sys.stdout.isatty(), os.environ.get("TERM")]
    return ["display", *arguments, json.dumps([*terminal, sys.stdout.encoding, variables])]


def load(key: Sequence[str]) -> Any:
    """Return the stored value of `key`, or None if there is no valid one."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        if not _state.is_used:
            return None
        entry = json.loads(_path(key).read_bytes())
        if isinstance(entry, dict) and entry.get("key") == list(key) and entry.get("source") == _source():
            return entry.get("value")
    return None


def store(key: Sequence[str], value: Any) -> None:
    """Store a JSON value in one step, so that other processes never read a part of it."""
    if not _state.is_used:
        return
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry = {"key": list(key), "source": _source(), "value": value}
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            try:
                json.dump(entry, file)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        entries = sorted(path.parent.iterdir(), key=lambda one: one.stat().st_mtime)
        for old in entries[:-_MAX_ENTRIES]:
            old.unlink()


@contextlib.contextmanager
def show_progress() -> Iterator[None]:
    """Print one line on stderr if the `with` block takes over three seconds."""

    def report() -> None:
        with contextlib.suppress(OSError, ValueError):  # stderr is closed
            print(_PROGRESS, file=sys.stderr, flush=True)

    timer = threading.Timer(_SILENT_SECONDS, report)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Recorder:
    """Output stream that also records what is written to it."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._parts = stream, []

    def write(self, text: str) -> int:
        """Write a text to the stream and record it."""
        self._parts.append(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._parts)


def _path(key: Sequence[str]) -> Path:
    """Return the file of an entry. Raises RuntimeError if the user has no home folder."""
    name = hashlib.blake2b(json.dumps([_package(), *key]).encode(), digest_size=16).hexdigest()
    return _folder() / f"{name}.json"


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # as the XDG specification says
        base = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(base).expanduser() / "scrubjay" / "help"


def _package() -> str:
    return os.path.dirname(_version.__file__)


@functools.cache
def _source() -> str:
    """Return a digest of what a text depends on: version, interpreter, and times and sizes of the sources."""
    tyro = importlib.util.find_spec("tyro")
    lines = [_version.__version__, sys.version, *_files(_package())]
    if tyro is not None and tyro.origin is not None:
        lines.append(f"{tyro.origin} {os.stat(tyro.origin).st_mtime_ns}")
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _files(folder: str) -> Iterator[str]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.endswith(".py"):
            status = entry.stat()
            yield f"{entry.path} {status.st_mtime_ns} {status.st_size}"
        elif "." not in entry.name and entry.name != "__pycache__" and entry.is_dir():
            yield from _files(entry.path)

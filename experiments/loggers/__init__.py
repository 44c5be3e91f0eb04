"""Clients of services that keep and draw what a run measures, besides its own files: W&B and MLflow."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.reading import read_object
from scrubjay.experiments.words.foreign import one_line

LOGGERS = ("mlflow", "wandb")
"""Their names: each is a module here, an extra of Scrubjay, and the package that it imports."""
FILE = "loggers.json"
"""Of a run: by which name a service knows it, so that it goes on there when it goes on here."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_log = logging.getLogger(__name__)


class Client(Protocol):
    """A run as a service sees it."""

    id: str
    """The service's name of it."""

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Hand over what an update measured."""
        ...

    def close(self, result: Mapping[str, float] | None) -> None:
        """Hand over the result and end; None where the run was stopped or failed."""
        ...


class Log:
    """Hands rows to a client until it fails, which is said once: training does not hang on a network."""

    def __init__(self, name: str = "", client: Client | None = None) -> None:
        self._name, self._client = name, client
        self.result: dict[str, float] | None = None

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Hand over what an update measured."""
        self._try(lambda client: client.update(step, row))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Keep the numbers of a result for the end."""
        self.result = {name: value for name, value in result.items() if type(value) in (int, float)}

    def close(self) -> None:
        """End it."""
        self._try(lambda client: client.close(self.result))
        self._client = None

    def _try(self, act: Callable[[Client], None]) -> None:
        if self._client is None:
            return
        try:
            act(self._client)
        except Exception as error:  # noqa: BLE001  (of a foreign client, and of any network)
            self._client = None
            reason = one_line(error) or type(error).__name__
            _log.warning(
                "%s is told nothing more (%s); the run goes on, and keeps its record", self._name, reason
            )


@contextlib.contextmanager
def log_to(name: str | None, path: Path, config: Mapping[str, Any]) -> Iterator[Log]:
    """Open the run at `path` at a service, the one it is known there as if it is; None logs nowhere.

    Raises ValueError, in one line, if the service cannot be reached at the start or its package is missing.
    """
    log = Log() if name is None else Log(name, _open(name, path, config))
    try:
        yield log
    finally:
        log.close()


def check(name: str | None) -> None:
    """Raise ValueError, naming the extra, if a logger is unknown or its package is missing."""
    if name is None:
        return
    if name not in LOGGERS:
        raise ValueError(f"unknown logger {name!r}; choose from {', '.join(LOGGERS)}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"logger {name!r} needs {name}: pip install 'scrubjay[{name}]'")


def _open(name: str, path: Path, config: Mapping[str, Any]) -> Client:
    check(name)
    kept = _kept(path / FILE)
    try:
        client = importlib.import_module(f"{__name__}.{name}").open_client(path.name, config, kept.get(name))
    except Exception as error:
        raise ValueError(f"{name} cannot be reached: {one_line(error) or type(error).__name__}") from error
    if kept.get(name) != client.id:
        write_atomically(path / FILE, json.dumps({**kept, name: client.id}) + "\n")
    return client


def _kept(file: Path) -> dict[str, str]:
    """Return what services call the run. Raises ValueError if the file holds no such names."""
    if not file.exists():
        return {}
    fields = dict(read_object(file))
    for name, value in fields.items():
        if name not in LOGGERS or not isinstance(value, str) or not _ID.fullmatch(value):
            raise ValueError(f"{file} is damaged: {name!r:.40} is {value!r:.80}; without it they begin anew")
    return fields

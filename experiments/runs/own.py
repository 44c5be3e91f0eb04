"""Modules of the user's own, which `--env`, `--tools`, a trusted run or SCRUBJAY_IMPORT names."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from pathlib import Path

VARIABLE = "SCRUBJAY_IMPORT"
"""Environment variable that names modules, separated by commas, to import before any name is looked up.

They may register memories, policies and learners. Processes that are started here inherit it.
"""

FOLDER = "SCRUBJAY_FOLDER"
"""Environment variable of Ray's workers: the folder where their driver finds modules of the user's.

A plus sign before it says that the driver has it on its path already.
"""


class _Search:
    """The folder that this process searches for modules that the user names."""

    allowed = False
    folder: str | None = None
    """A driver's folder; None for the current one."""
    appended: str | None = None


_search = _Search()


@contextmanager
def current_folder_searched() -> Iterator[None]:
    """Let `make_importable` search the current folder inside the block, as the command does."""
    before = _search.allowed, _search.appended
    _search.allowed = True
    try:
        yield
    finally:
        _search.allowed, _search.appended = before


def make_importable(module: str) -> None:
    """Append the current folder to `sys.path` if it has the module that the user names and nothing else has.

    A word that names no module must not do so: a folder may hold strangers' files with the names of optional
    packages. Once appended the folder stays, for what the module itself imports.
    """
    top = module.partition(".")[0]
    folder = _folder()
    if folder is None or not top.isidentifier() or top in sys.modules:
        return
    with suppress(ImportError, ValueError):  # of a module that is there and broken, its import tells
        if importlib.util.find_spec(top) is None and PathFinder.find_spec(top, [folder]) is not None:
            _append(folder)


def worker_folder() -> dict[str, str]:
    """Return the environment variable by which Ray's workers find modules where this process does."""
    if _search.appended is not None:
        return {FOLDER: f"+{_search.appended}"}
    folder = _folder()
    return {} if folder is None else {FOLDER: folder}


def appended_folder() -> str | None:
    """Return the folder that `make_importable` has appended, None if it had no reason to."""
    return _search.appended


def follow_driver() -> None:
    """Find modules where the driver does; Ray calls this first in each worker of a run."""
    if found := os.environ.get(FOLDER):
        _search.allowed, _search.folder = True, found.removeprefix("+")
        if found.startswith("+"):
            _append(_search.folder)


def _folder() -> str | None:
    """Return the folder to search, None if there is none."""
    if not _search.allowed:
        return None
    with suppress(FileNotFoundError):  # it may have been deleted
        return _search.folder or os.getcwd()
    return None


def _append(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()
    _search.appended = folder


def import_own() -> None:
    """Import the modules that the variable names. Raises ImportError, naming what failed."""
    for module in map(str.strip, os.environ.get(VARIABLE, "").split(",")):
        if module.endswith(".py"):
            raise ImportError(f"{VARIABLE}={module}: expected a module's name, as {Path(module).stem} is")
        try:
            if module:
                make_importable(module)
                importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"{VARIABLE}={module}: {error}") from error

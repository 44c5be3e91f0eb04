"""Import of the user's own modules, named by `--env`, `--tools`, a trusted run or SCRUBJAY_IMPORT."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from pathlib import Path

IMPORT_VARIABLE = "SCRUBJAY_IMPORT"
"""Environment variable with comma-separated modules to import before any name is looked up.

They may register memories, policies and learners. Child processes inherit it.
"""

FOLDER_VARIABLE = "SCRUBJAY_FOLDER"
"""Environment variable of Ray workers: the folder where the driver finds the user's modules.

A leading plus sign means that the folder is already on the driver's `sys.path`.
"""


class _SearchState:
    """State of the search for user modules in this process."""

    is_allowed = False
    folder: str | None = None
    """Folder of the driver; None for the current folder."""
    appended_path: str | None = None


_search = _SearchState()


@contextmanager
def search_current_folder() -> Iterator[None]:
    """Let `make_importable` search the current folder inside the block, as the command does."""
    before = _search.is_allowed, _search.appended_path
    _search.is_allowed = True
    try:
        yield
    finally:
        _search.is_allowed, _search.appended_path = before


def make_importable(module: str) -> None:
    """Append the current folder to `sys.path` if only this folder has the module that the user names.

    Other names must not append it, since the folder may hold untrusted files with the names of optional
    packages. Once appended the folder stays, for the imports of the module itself.
    """
    top = module.partition(".")[0]
    folder = _folder()
    if folder is None or not top.isidentifier() or top in sys.modules:
        return
    with suppress(ImportError, ValueError):  # importing a broken module reports the error later
        if importlib.util.find_spec(top) is None and PathFinder.find_spec(top, [folder]) is not None:
            _append(folder)


def worker_folder() -> dict[str, str]:
    """Return the environment variable with which Ray workers find the user modules of this process."""
    if _search.appended_path is not None:
        return {FOLDER_VARIABLE: f"+{_search.appended_path}"}
    folder = _folder()
    return {} if folder is None else {FOLDER_VARIABLE: folder}


def appended_folder() -> str | None:
    """Return the folder that `make_importable` appended; None if it appended none."""
    return _search.appended_path


def follow_driver() -> None:
    """Search the driver's folder for user modules; Ray calls this first in each worker of a run."""
    if driver_folder := os.environ.get(FOLDER_VARIABLE):
        _search.is_allowed, _search.folder = True, driver_folder.removeprefix("+")
        if driver_folder.startswith("+"):
            _append(_search.folder)


def _folder() -> str | None:
    """Return the folder to search; None if there is none."""
    if not _search.is_allowed:
        return None
    with suppress(FileNotFoundError):  # it may have been deleted
        return _search.folder or os.getcwd()
    return None


def _append(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()
    _search.appended_path = folder


def import_user_modules() -> None:
    """Import the modules in SCRUBJAY_IMPORT. Raises ImportError naming the module that failed."""
    for module in map(str.strip, os.environ.get(IMPORT_VARIABLE, "").split(",")):
        if module.endswith(".py"):
            raise ImportError(
                f"{IMPORT_VARIABLE}={module}: expected a module's name, as {Path(module).stem} is"
            )
        try:
            if module:
                make_importable(module)
                importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"{IMPORT_VARIABLE}={module}: {error}") from error

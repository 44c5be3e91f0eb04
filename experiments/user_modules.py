"""Import of the user's own modules, named by `--env`, `--tools`, a trusted run or SCRUBJAY_IMPORT."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from itertools import accumulate
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
    """Folder where the Ray driver finds the user's modules; None for the current folder of this process."""
    appended_path: str | None = None


_search = _SearchState()


@contextmanager
def search_current_folder() -> Iterator[None]:
    """Let `make_importable` search the current folder in the `with` block, as the command line does."""
    before = _search.is_allowed, _search.appended_path
    _search.is_allowed = True
    try:
        yield
    finally:
        _search.is_allowed, _search.appended_path = before


def make_importable(module: str) -> None:
    """Append the current folder to `sys.path` if the module exists only in this folder.

    Call this only for a module that the user names, since the folder may hold untrusted files with the names
    of optional packages. The folder stays on `sys.path`, so that the module can import other modules from it.
    """
    top = module.partition(".")[0]
    folder = _folder()
    if folder is None or not top.isidentifier() or top in sys.modules:
        return
    with suppress(ImportError, ValueError):  # importing a broken module reports the error later
        if importlib.util.find_spec(top) is None and PathFinder.find_spec(top, [folder]) is not None:
            _append(folder)


@dataclass(frozen=True)
class ModuleFiles:
    """Files of a module and of its parent packages, the outermost package first."""

    paths: tuple[str, ...]
    """Paths where the import finds the files; the folders are real paths."""
    targets: tuple[str, ...]
    """Real paths of the files, which differ from `paths` for links."""

    @property
    def folder(self) -> str:
        """Folder in which the import finds the outermost module."""
        folder, file = os.path.split(self.paths[0])
        return os.path.dirname(folder) if file.startswith("__init__.") else folder


def locate_module(module: str) -> ModuleFiles:
    """Return the files that an import of `module` runs, as `make_importable` finds them. Nothing is imported.

    Raises ModuleNotFoundError if one of them does not exist or is not in a file.
    """
    paths: list[str] = []
    folders: list[str] | None = None
    for name in accumulate(module.split("."), "{}.{}".format):
        try:
            spec = _find_spec(name, folders)
        except (ImportError, ValueError, AttributeError):  # from another library's finder
            spec = None
        if spec is None or (spec.origin is None and spec.submodule_search_locations is None):
            raise ModuleNotFoundError(f"no module named {name!r} is found", name=name)
        folders = list(spec.submodule_search_locations or ())
        files = folders if spec.origin is None else [spec.origin]  # a namespace package has only folders
        paths += [os.path.join(os.path.realpath(os.path.dirname(f)), os.path.basename(f)) for f in files]
    return ModuleFiles(tuple(paths), tuple(map(os.path.realpath, paths)))


def _find_spec(name: str, folders: list[str] | None) -> ModuleSpec | None:
    if name in sys.modules:
        return sys.modules[name].__spec__
    if folders is not None:  # with the full name, the spec of a namespace package needs its parent imported
        return PathFinder.find_spec(name.rpartition(".")[2], folders)
    spec = importlib.util.find_spec(name)  # of an outermost module; it imports nothing
    folder = _folder()
    return spec if spec is not None or folder is None else PathFinder.find_spec(name, [folder])


def worker_folder() -> dict[str, str]:
    """Return a dict with the environment variable from which Ray workers take the folder of user modules.

    The dict is empty if this process has no such folder.
    """
    if _search.appended_path is not None:
        return {FOLDER_VARIABLE: f"+{_search.appended_path}"}
    folder = _folder()
    return {} if folder is None else {FOLDER_VARIABLE: folder}


def appended_folder() -> str | None:
    """Return the folder that `make_importable` appended to `sys.path`; None if it has appended no folder."""
    return _search.appended_path


def follow_driver() -> None:
    """Search the driver's folder for user modules. Ray calls this function first in each worker of a run."""
    if driver_folder := os.environ.get(FOLDER_VARIABLE):
        _search.is_allowed, _search.folder = True, driver_folder.removeprefix("+")
        if driver_folder.startswith("+"):
            _append(_search.folder)


def _folder() -> str | None:
    """Return the folder to search for user modules; None if the search is off or the folder was deleted."""
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
                f"{IMPORT_VARIABLE}={module}: expected a module name, such as {Path(module).stem}"
            )
        try:
            if module:
                make_importable(module)
                importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"{IMPORT_VARIABLE}={module}: {error}") from error

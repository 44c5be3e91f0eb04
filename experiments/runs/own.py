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

_state = {"searches": False}


@contextmanager
def current_folder_searched() -> Iterator[None]:
    """Let `make_importable` search the current folder inside the block, as the command does."""
    before = _state["searches"]
    _state["searches"] = True
    try:
        yield
    finally:
        _state["searches"] = before


def make_importable(module: str) -> None:
    """Append the current folder to `sys.path` if it has the module that the user names and nothing else has.

    A word that names no module must not do so: a folder may hold strangers' files with the names of optional
    packages. Once appended the folder stays, for what the module itself imports.
    """
    top = module.partition(".")[0]
    if not _state["searches"] or not top.isidentifier() or top in sys.modules:
        return
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # it may have been deleted
        return
    with suppress(ImportError, ValueError):  # of a module that is there and broken, its import tells
        if importlib.util.find_spec(top) is None and PathFinder.find_spec(top, [folder]) is not None:
            sys.path.append(folder)
            importlib.invalidate_caches()


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

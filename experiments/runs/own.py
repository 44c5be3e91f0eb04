"""Modules of the user's own, whose memories, policies and learners are known before a name is looked up."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

VARIABLE = "SCRUBJAY_IMPORT"
"""Environment variable that names them, with commas between; processes that are started here have it, too."""


def import_own() -> None:
    """Import what the variable names. Raises ImportError, naming what failed."""
    for module in map(str.strip, os.environ.get(VARIABLE, "").split(",")):
        if module.endswith(".py"):
            raise ImportError(f"{VARIABLE}={module}: expected a module's name, as {Path(module).stem} is")
        try:
            if module:
                importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"{VARIABLE}={module}: {error}") from error

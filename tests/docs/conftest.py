"""Import the modules of `docs` as Sphinx does, from their folder."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def from_docs():
    """Return a function that imports a module of `docs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "docs")
        yield importlib.import_module

"""What the packages of agents show of themselves, to completion and to who looks a name up."""

from __future__ import annotations

import importlib

import pytest

PACKAGES = {
    "agents": {"embeddings", "kwai", "langchain", "rllib", "tools"},
    "agents.embeddings": set(),
    "agents.kwai": set(),
    "agents.langchain": set(),
    "agents.rllib": set(),
    "agents.tools": set(),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_lists_its_public_names_and_packages(name: str) -> None:
    package = importlib.import_module(f"scrubjay.{name}")
    public = {*package.__all__, *PACKAGES[name]}
    assert public <= set(dir(package))
    assert all(hasattr(package, each) for each in public)


def test_no_public_name_is_that_of_a_module_of_its_package() -> None:
    for name in PACKAGES:
        package = importlib.import_module(f"scrubjay.{name}")
        for public in package.__all__:
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(f"scrubjay.{name}.{public}")

"""Local chat model with random weights and deterministic answers."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_itemcollected(item):
    """Mark what a class names in `matrix`: tests of a standard suite must not be overridden."""
    if item.name in getattr(getattr(item, "cls", None), "matrix", ()):
        item.add_marker("matrix")


@pytest.fixture
def chat(tiny_chat):
    from scrubjay.agents import LocalChatModel

    def build(**settings):
        defaults: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
        return LocalChatModel(model=tiny_chat, **defaults | settings)

    return build

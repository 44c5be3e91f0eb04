"""Fixture of a small model's folder, with a state folder of its own."""

import pytest


@pytest.fixture
def folder(tmp_path, tiny_chat, monkeypatch):
    """Return the folder of a random chat model; records of trials are written beside it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for part in tiny_chat:
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"

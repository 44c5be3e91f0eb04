"""Limits: each one stops the planning, and the answer is still written and mentions the reason."""

from __future__ import annotations

import pytest

from scrubjay.agents.kwai import Limits

from .questions import ask


def test_steps():
    result, model = ask(max_steps=3)
    assert (result["stopped"], len(result["steps"]), len(model.prompts)) == ("steps", 3, 4)
    assert "steps" in result["answer"]


def test_tool_calls():
    result, _ = ask(max_steps=9, limits=Limits(tool_calls=2))
    assert (result["stopped"], len(result["steps"])) == ("tool_calls", 2)


def test_tokens():
    result, model = ask(max_steps=9, limits=Limits(tokens=1))
    assert (result["stopped"], len(result["steps"]), len(model.prompts)) == ("tokens", 1, 2)


def test_seconds(monkeypatch):
    seconds = iter(range(0, 10_000, 7))
    monkeypatch.setattr("scrubjay.agents.kwai.limits.time.monotonic", lambda: next(seconds))
    result, _ = ask(max_steps=99, limits=Limits(seconds=60, tool_calls=99))
    assert result["stopped"] == "seconds"
    assert 0 < len(result["steps"]) < 9


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="tool_seconds=0"):
        Limits(tool_seconds=0)

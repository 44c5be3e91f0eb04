"""Local server of a language-model provider, for commands that use one."""

import contextlib

import pytest

from ...agents.kwai.chat_completions import KEY, serve


@pytest.fixture
def openai(monkeypatch):
    """Point OpenAI's client at a local server that returns these replies."""
    with contextlib.ExitStack() as running:

        def start(*replies):
            server = running.enter_context(serve(*replies))
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            return server

        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield start

"""A provider of language models on this machine, for commands that ask one."""

import contextlib

import pytest

from ...agents.kwai.chat_completions import KEY, serve


@pytest.fixture
def openai(monkeypatch):
    """Let the environment lead OpenAI's client to a server here that gives these replies."""
    with contextlib.ExitStack() as running:

        def start(*replies):
            server = running.enter_context(serve(*replies))
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            return server

        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield start

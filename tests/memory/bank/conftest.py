"""Fixtures: a bank with a clock that tests set by hand, and embeddings that need no model."""

from datetime import UTC, datetime

import pytest

from scrubjay.memory import MemoryBank


class Clock:
    def __init__(self):
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self):
        return self.now


class LetterCountEmbeddings:
    """Embeddings by letter counts: texts with the same letters are similar."""

    def embed_query(self, text):
        return [0.01, *(float(text.lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz")]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def bank(clock):
    with MemoryBank(":memory:", clock=clock) as bank:
        yield bank


@pytest.fixture(scope="session")
def letters():
    return LetterCountEmbeddings()

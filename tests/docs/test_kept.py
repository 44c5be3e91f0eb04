"""What is drawn of a context policy is what its sizes say."""

import numpy as np
import pytest

from scrubjay.memory import context
from scrubjay.memory.context.policies.sinks import SinksPolicy


@pytest.fixture(scope="module")
def drawn(from_docs):
    return from_docs("kept")


def places(drawn):
    ends = np.arange(drawn.PROMPT, drawn.TOKENS + 1)[:, None]
    return np.arange(drawn.TOKENS)[None], ends


@pytest.mark.parametrize("name", context.list_policies())
def test_what_is_not_yet_there_is_not_kept_and_the_newest_token_is_read(name, drawn):
    token, ends = places(drawn)
    marks = drawn.kept(name)
    assert not marks[token >= ends].any()
    assert (marks[token == ends - 1] == 2).all()


def test_a_window_is_the_last_tokens_and_sinks_are_the_first_as_well(drawn):
    token, ends = places(drawn)
    there = token < ends
    budget, first = drawn.BUDGET, SinksPolicy().num_sinks
    assert ((drawn.kept("window") == 2) == (there & (token >= ends - budget))).all()
    last = there & (token >= ends - (budget - first))
    assert ((drawn.kept("sinks") == 2) == (last | (token < first) & there)).all()


@pytest.mark.parametrize("name", ["full", "chunks", "recycled"])
def test_some_lose_nothing(name, drawn):
    token, ends = places(drawn)
    assert drawn.kept(name)[token < ends].all()

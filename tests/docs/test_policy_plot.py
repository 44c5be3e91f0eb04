"""The plot of a context policy agrees with its settings."""

import numpy as np
import pytest

from scrubjay.memory import context
from scrubjay.memory.context.policies.sinks import SinksPolicy

pytestmark = pytest.mark.requires("transformers")


@pytest.fixture(scope="module")
def plot(from_docs):
    return from_docs("policy_plot")


def places(plot):
    ends = np.arange(plot.PROMPT, plot.TOKENS + 1)[:, None]
    return np.arange(plot.TOKENS)[None], ends


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", context.list_policies())
def test_future_tokens_are_not_retained_and_the_newest_token_is_read(name, plot):
    token, ends = places(plot)
    marks = plot.mark_tokens(name)
    assert not marks[token >= ends].any()
    assert (marks[token == ends - 1] == 2).all()


def test_a_window_is_the_last_tokens_and_sinks_are_the_first_as_well(plot):
    token, ends = places(plot)
    there = token < ends
    budget, first = plot.BUDGET, SinksPolicy().num_sinks
    assert ((plot.mark_tokens("window") == 2) == (there & (token >= ends - budget))).all()
    last = there & (token >= ends - (budget - first))
    assert ((plot.mark_tokens("sinks") == 2) == (last | (token < first) & there)).all()


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("name", ["full", "chunks", "recycled", "refreshkv"])
def test_some_lose_nothing(name, plot):
    token, ends = places(plot)
    assert plot.mark_tokens(name)[token < ends].all()

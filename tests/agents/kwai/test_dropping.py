"""The agent reports tokens that the cache of its local model has dropped."""

import asyncio
from functools import reduce
from operator import add
from typing import Any

import pytest

from scrubjay.agents import LocalChatModel
from scrubjay.agents.kwai import KwaiAgent
from scrubjay.agents.kwai.limits import Limits

pytestmark = pytest.mark.requires("transformers")


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
def test_an_agent_reports_tokens_that_its_model_has_dropped(way, tiny_chat):
    for budget, policy in ((64, "sinks"), (None, "sinks"), (64, "chunks")):
        model = LocalChatModel(model=tiny_chat, policy=policy, budget=budget, max_tokens=8)
        # Limits of one's own may exceed what the cache retains.
        agent = KwaiAgent(model, limits=Limits(context_tokens=1000))
        question = "What did the jay cache? " * 4
        if way == "stream":
            parts: Any = agent.stream(question)
            result = dict(reduce(add, parts))
        else:
            result = agent.invoke(question) if way == "invoke" else asyncio.run(agent.ainvoke(question))
        expected = model.dropped_tokens()
        assert result["dropped_tokens"] == expected
        assert result["messages"][-1].response_metadata["dropped_tokens"] == expected
        assert (expected > 0) == (budget == 64 and policy == "sinks")

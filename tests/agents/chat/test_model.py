"""The local chat model through langchain's interface: settings, streams, threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from scrubjay.agents import LocalChatModel
from scrubjay.memory import context
from scrubjay.memory.context.policies.scored.kvzip import INSTRUCTION

from .talking import QUESTIONS, read, talk, weather

pytestmark = pytest.mark.requires("transformers", "llguidance")


def test_a_budget_set_later_holds_for_the_next_conversation(chat):
    model = chat(budget=24)
    bytes_of = {}
    for budget in (24, 48):
        model.budget = budget
        *_, last = talk(model, QUESTIONS, {"configurable": {"thread_id": f"of {budget}"}})
        bytes_of[budget] = last.response_metadata["cache_bytes"]
    assert bytes_of[48] == 2 * bytes_of[24]


def test_the_cache_stays_within_its_budget_and_is_told(chat, tiny_chat):
    model = chat(budget=24)
    *_, last = talk(model, QUESTIONS)
    shape = context.CacheShape(2, 1, heads=4, key_heads=2, key_width=8, value_width=8, itemsize=4)
    assert last.usage_metadata is not None
    assert last.response_metadata["cache_bytes"] == model.cache_bytes() == 24 * shape.token_bytes
    assert last.usage_metadata["total_tokens"] > 24


def test_stream_says_what_invoke_says(chat):
    chunks = list(chat(max_tokens=40).stream("Hello"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    at_once = chat(max_tokens=40).invoke("Hello")
    assert len(chunks) > 20
    assert whole.text == at_once.text
    assert whole.usage_metadata == at_once.usage_metadata
    assert [chunk.chunk_position for chunk in chunks[-2:]] == [None, "last"]


def test_many_threads_at_once_answer_as_one(chat):
    questions = [f"Hello {number}" for number in range(6)]
    alone = [chat().invoke(question).text for question in questions]
    model, answers = chat(), {}
    threads = [
        threading.Thread(target=lambda q=question: answers.update({q: model.invoke(q).text}))
        for question in questions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[question] for question in questions] == alone

    async def together():
        return await asyncio.gather(*(model.ainvoke(question) for question in questions))

    assert [answer.text for answer in asyncio.run(together())] == alone


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"top_p": 0}, "top_p=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"policy": "sinkz"}, "did you mean 'sinks'"),
        ({"budget": 1}, "budget=1"),
        ({"max_conversations": -1}, "max_conversations=-1"),
        ({"budgett": 5}, "unknown setting budgett"),
    ],
)
def test_settings_that_cannot_work_are_named(chat, wrong, message):
    with pytest.raises(ValueError, match=message):
        chat(**wrong)


def test_what_cannot_be_answered_is_named(chat):
    model = chat()
    with pytest.raises(ValueError, match="reads text only"):
        model.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "http://x"}}])])
    with pytest.raises(ValueError, match="at least one message"):
        model.invoke([])
    with pytest.raises(ValueError, match="no model at"):
        LocalChatModel(model="/no/such/folder").invoke("Hello")
    with pytest.raises(ValueError, match=r"shortest valid answer has \d+ tokens"):
        model.bind_tools([weather], tool_choice="any").invoke("Hello", max_tokens=5)
    with pytest.raises(ValueError, match="tool_choice='whether'"):
        model.bind_tools([weather], tool_choice="whether")
    with pytest.raises(ValueError, match="policy='sinks'"):
        chat(policy="full").invoke("Hello " * 700)


@pytest.mark.slow
def test_a_real_model_answers_and_remembers(smollm2):
    model = LocalChatModel(model=smollm2, temperature=0, max_tokens=10)
    capital, italy = talk(model, ["What is the capital of France?", "And of Italy?"])
    assert "Paris" in capital.text
    assert "Rome" in italy.text
    assert read(italy) >= capital.usage_metadata["total_tokens"] - 1


@pytest.mark.parametrize("policy", ["sinks", "window", "h2o", "snapkv", "full", "chunks", "recycled"])
def test_answers_report_the_tokens_that_the_policy_dropped(chat, policy):
    model = chat(policy=policy, budget=60, max_tokens=12, track_tokens=True)
    for number in range(3):
        message = model.invoke("Hello " * (10 + 40 * number), {"configurable": {"thread_id": "a"}})
        count = message.response_metadata["dropped_tokens"]
        cache = model._conversations.latest("a").cache
        tokens = cache.get_retained_tokens().values()
        assert count == max(int((~each.stored_mask).sum(dim=-1).max()) for each in tokens)
        assert count == model.dropped_tokens("a") == cache.dropped_tokens
        assert (count > 0) == (cache.policy.drops and cache.get_seq_length() > 75) or number == 0
    chunks = list(model.stream("Hello " * 90, {"configurable": {"thread_id": "a"}}))
    assert [c.response_metadata["dropped_tokens"] for c in chunks if c.response_metadata] == [
        model.dropped_tokens("a")
    ]
    assert model.dropped_tokens("b") == 0


def test_the_default_budget_is_that_of_the_model(chat, tiny_chat):
    window = tiny_chat[0].config.max_position_embeddings
    model = chat()
    assert model.context_policy == context.make("sinks", budget=min(window, 8192))
    model.invoke("Hello")
    assert model._conversations.latest(None).cache.policy == model.context_policy
    assert model.tokens_in_view == window - model.max_tokens
    assert model.invoke("Hello").usage_metadata["input_token_details"]["cache_read"] > 0


@pytest.mark.slow
def test_positions_beyond_the_training_length_are_refused_under_every_policy(chat, tiny_chat):
    window = tiny_chat[0].config.max_position_embeddings
    for policy, budget in (("full", None), ("sinks", window + 1), ("chunks", window), ("snapkv", window)):
        model = chat(policy=policy, budget=budget)
        assert model.invoke("Hello").text
        with pytest.raises(ValueError, match=f"trained on at most {window} tokens"):
            model.invoke("Hello " * window)
    assert (
        chat(policy="sinks", budget=window).invoke("Hello " * window).response_metadata["dropped_tokens"] > 0
    )


def test_a_budget_beside_a_policy_object_is_refused(chat):
    policy = context.make("sinks", budget=64)
    assert chat(policy=policy).context_policy == policy
    with pytest.raises(ValueError, match=r"budget=128: the policy is the object SinksPolicy\(budget=64"):
        chat(policy=policy, budget=128)


def test_kvzip_repeats_a_text_after_an_instruction(chat):
    model = chat(policy="kvzip", budget=512)
    policy: Any = model.context_policy
    assert policy.instruction == tuple(model.loaded_model.tokenize(INSTRUCTION))
    assert policy.instruction
    model.invoke("Hello")
    assert model._conversations.latest(None).cache.policy == policy

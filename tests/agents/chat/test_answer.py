"""Answers: stop conditions, sampling, and the conversation after an answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

from scrubjay.agents import LocalChatModel
from scrubjay.agents.chat.answer import AnswerConfig
from scrubjay.agents.chat.prompt import write_prompt
from scrubjay.memory import context

from .talking import read

pytestmark = pytest.mark.requires("transformers", "llguidance")


@pytest.mark.slow
@given(st.data())
@settings(deadline=None, max_examples=8)
def test_a_stop_sequence_cuts_the_answer_where_it_begins(tiny_chat, data):
    model = LocalChatModel(model=tiny_chat, temperature=0, max_tokens=16, policy="full")
    full_text = model.invoke("Hello").text
    begin = data.draw(st.integers(0, len(full_text) - 1))
    stop = full_text[begin : begin + data.draw(st.integers(1, 6))]
    messages = [HumanMessage("Hello"), model.invoke("Hello", stop=[stop, "not said"])]
    assert messages[1].text == full_text[: full_text.index(stop)]
    going_on = model.invoke([*messages, HumanMessage("On")])
    fresh = LocalChatModel(model=tiny_chat, temperature=0, max_tokens=16, policy="full")
    assert going_on.text == fresh.invoke([*messages, HumanMessage("On")]).text
    assert read(going_on) > 10


def test_a_stream_left_early_leaves_what_was_shown(chat):
    model = chat(max_tokens=30, policy="full")
    stream = model.stream("Hello")
    visible_text = "".join(next(stream).text for _ in range(9))
    stream.close()
    messages = [HumanMessage("Hello"), AIMessage(visible_text), HumanMessage("On")]
    answer = model.invoke(messages)
    assert answer.text == chat(max_tokens=30, policy="full").invoke(messages).text
    assert read(answer) > 10


def test_draws_follow_the_seed_and_narrow_to_the_likeliest(chat):
    def answer_text(**options):
        return chat(max_conversations=0, **options).invoke("Hello").text

    assert (
        answer_text(temperature=1, seed=1)
        == answer_text(temperature=1, seed=1)
        != answer_text(temperature=1, seed=2)
    )
    assert answer_text(temperature=1, top_p=1e-6) == answer_text(temperature=1e-4) == answer_text()


@pytest.mark.parametrize("policy", ["snapkv", "recycled"])
def test_tokens_at_positions_that_nobody_trained_are_refused(chat, policy):
    with pytest.raises(ValueError, match="trained on at most 4096"):
        chat(policy=policy).invoke("Hello " * 700)


def test_a_long_question_chooses_what_its_end_attends_to(chat, tiny_chat):
    model, tokenizer = tiny_chat
    policy = context.make("snapkv", budget=128)
    messages = [HumanMessage("".join(chr(97 + place * place % 26) for place in range(1200)))]
    answer = chat(policy=policy).invoke(messages)
    prompt = tokenizer(write_prompt(tokenizer, messages), return_tensors="pt").input_ids
    output = model.generate(
        prompt, cache=context.PolicyCache(policy, model), do_sample=False, max_new_tokens=12
    )
    assert answer.text == tokenizer.decode(output[0, prompt.shape[1] :])


def test_a_text_longer_than_the_model_was_trained_on_is_answered(chat):
    assert chat().invoke("Hello " * 700).usage_metadata["input_tokens"] > 4200


def test_an_answer_has_at_least_one_token():
    with pytest.raises(ValueError, match="max_tokens=0"):
        AnswerConfig(max_tokens=0)


def test_it_ends_at_its_limit_and_says_why(chat):
    answer = chat(max_tokens=7).invoke("Hello")
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 7
    stopped_answer = chat(max_tokens=7).invoke("Hello", stop=[answer.text[2:4]])
    assert stopped_answer.response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize("policy", ["full", "snapkv"])
def test_the_cache_and_the_pending_tokens_have_the_text_of_the_conversation(chat, tiny_chat, policy):
    tokenizer = tiny_chat[1]
    question = "Hello " * 60
    full_text = chat(policy=policy, budget=64).invoke(question).text
    model = chat(policy=policy, budget=64)
    stop = full_text[4:8]
    assert model.invoke(question, stop=[stop]).text == full_text[: full_text.index(stop)]
    conversation = model._conversations.latest(None)
    num_tokens = conversation.cache.get_seq_length() + len(conversation.pending)
    assert num_tokens == len(tokenizer(conversation.text).input_ids)

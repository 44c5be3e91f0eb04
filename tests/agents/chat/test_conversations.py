"""Stored conversations reduce the cost and do not change the answers."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig

from scrubjay.agents import LocalChatModel
from scrubjay.agents.chat.answer import Answer, AnswerConfig
from scrubjay.agents.chat.conversations import Conversation
from scrubjay.agents.chat.language_model import LoadedModel
from scrubjay.agents.chat.prompt import write_prompt
from scrubjay.memory.context import PolicyCache, make

from .talking import QUESTIONS, SYSTEM, read, talk, weather

pytestmark = pytest.mark.requires("transformers", "llguidance")


@pytest.mark.parametrize(("policy", "budget"), [("full", 0), ("sinks", 1024), ("sinks", 24), ("window", 24)])
def test_a_kept_conversation_gives_the_answers_of_a_fresh_one(chat, policy, budget):
    continued_answers = talk(chat(policy=policy, budget=budget), QUESTIONS)
    fresh = talk(chat(policy=policy, budget=budget, max_conversations=0), QUESTIONS)
    assert [answer.text for answer in continued_answers] == [answer.text for answer in fresh]
    for before, answer, alone in zip([None, *continued_answers], continued_answers, fresh, strict=False):
        assert answer.usage_metadata["input_tokens"] == alone.usage_metadata["input_tokens"]
        assert read(alone) == 0
        # All tokens of prompt and answer except the last, which was not processed.
        assert before is None or read(answer) >= before.usage_metadata["total_tokens"] - 1


def test_asked_again_only_the_last_token_is_read_again(chat):
    model = chat(policy="full")
    first, second = (model.invoke("Hello there") for _ in range(2))
    assert first.text == second.text
    assert read(second) == second.usage_metadata["input_tokens"] - 1


def test_a_policy_that_cannot_go_back_reads_again(chat):
    model = chat(policy="sinks", budget=24)
    first, second = (model.invoke("Hello there, it is sunny") for _ in range(2))
    assert first.text == second.text
    assert read(second) == 0


@pytest.mark.one_in(4)
@pytest.mark.parametrize("thread", [None, "anna"])
@pytest.mark.parametrize("policy", ["full", "sinks", "chunks", "recycled", "snapkv"])
def test_a_prompt_that_begins_as_another_did_reads_the_rest_and_answers_the_same(chat, policy, thread):
    config: RunnableConfig = {"configurable": {"thread_id": thread} if thread else {}}
    model, fresh = chat(policy=policy), chat(policy=policy, max_conversations=0)
    prompts = [
        [SYSTEM, *(HumanMessage(f"{number} {what}") for number, what in enumerate(user_texts))]
        for user_texts in (
            ["It rained.", "Why?"],
            ["It rained.", "When was it?"],
            ["It rained.", "When?", "No."],
            ["Oh."],
        )
    ]
    cache_reads = []
    for messages in prompts:
        answer, alone = model.invoke(messages, config), fresh.invoke(messages)
        assert answer.text == alone.text
        assert answer.usage_metadata["input_tokens"] == alone.usage_metadata["input_tokens"]
        cache_reads.append(read(answer))
    assert cache_reads[0] == 0
    croppable = policy != "snapkv"
    assert (min(cache_reads[1:3]) > 90) is croppable
    # Two unnamed conversations both continue; a name has only one.
    going_on = [*prompts[0], model.invoke(prompts[0], config), HumanMessage("On")]
    assert model.invoke(going_on, config).text == fresh.invoke(going_on).text


@pytest.mark.slow
@given(
    st.lists(
        st.lists(st.sampled_from(["Rain.", "Sun?", "No, it is snow that fell."]), min_size=1, max_size=4),
        max_size=5,
    ),
    st.sampled_from([40, 90, 1024]),
    st.sampled_from([None, "anna"]),
)
@settings(deadline=None, max_examples=15)
def test_whatever_was_read_before_changes_no_answer(tiny_chat, talks, budget, thread):
    options = {"model": tiny_chat, "temperature": 0, "max_tokens": 6, "policy": "sinks", "budget": budget}
    model, fresh = LocalChatModel(**options), LocalChatModel(**options, max_conversations=0)
    config: RunnableConfig = {"configurable": {"thread_id": thread} if thread else {}}
    for user_texts in talks:
        messages = [SYSTEM, *map(HumanMessage, user_texts)]
        assert model.invoke(messages, config).text == fresh.invoke(messages).text


def test_a_conversation_of_one_budget_is_no_beginning_for_another(chat):
    model = chat(budget=1024)
    model.invoke([SYSTEM, HumanMessage("It rained.")])
    model.budget = 512
    assert read(model.invoke([SYSTEM, HumanMessage("It snowed.")])) == 0


def test_a_conversation_that_shares_little_is_not_copied(chat):
    model = chat(policy="full")
    model.invoke([SYSTEM, HumanMessage("It rained. " * 40)])
    assert read(model.invoke([SYSTEM, HumanMessage("When?")])) == 0


def test_a_conversation_goes_on_from_disk(chat, tmp_path):
    model = chat(budget=24)
    talk(model, QUESTIONS[:2], {"configurable": {"thread_id": "anna"}})
    model.save_conversation(tmp_path, "anna")
    other = chat(budget=24)
    other.load_conversation(tmp_path, "berta")
    messages = [HumanMessage(QUESTIONS[0])]
    for question in QUESTIONS[1:]:
        messages += [chat(budget=24).invoke(messages), HumanMessage(question)]
    config = {"configurable": {"thread_id": "berta"}}
    assert (
        other.invoke(messages, config).text
        == model.invoke(messages, {"configurable": {"thread_id": "anna"}}).text
    )
    with pytest.raises(ValueError, match="holds no saved conversation"):
        model.load_conversation(tmp_path / "nothing")
    with pytest.raises(ValueError, match="budget"):
        chat(budget=30).load_conversation(tmp_path)
    with pytest.raises(ValueError, match="thread_id='carla': no stored conversation"):
        model.save_conversation(tmp_path, "carla")


def test_a_save_that_is_cut_short_leaves_the_last_one(chat, tmp_path, monkeypatch):
    model = chat(policy="full")
    talk(model, QUESTIONS[:1])
    model.save_conversation(tmp_path)
    saved_bytes = model.cache_bytes()
    talk(model, [QUESTIONS[0], "Tell me more. " * 20])

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.save_conversation(tmp_path)
    other = chat(policy="full")
    other.load_conversation(tmp_path)
    assert other.cache_bytes() == saved_bytes
    model.save_conversation(tmp_path)
    other.load_conversation(tmp_path)
    assert other.cache_bytes() == model.cache_bytes() > saved_bytes
    (cache,) = (
        file for file in tmp_path.iterdir() if file.name in (tmp_path / "conversation.json").read_text()
    )
    cache.write_bytes(cache.read_bytes()[:99])
    with pytest.raises(ValueError, match="damaged"):
        other.load_conversation(tmp_path)
    (tmp_path / "conversation.json").write_text('{"cache": "x", "colour": 3}')
    with pytest.raises(ValueError, match="holds no saved conversation"):
        other.load_conversation(tmp_path)


@pytest.mark.parametrize("way", ["huge", "pipe", "folder"])
def test_a_file_that_could_take_all_memory_or_block_is_refused(chat, tmp_path, way):
    file = tmp_path / "conversation.json"
    if way == "huge":
        with file.open("wb") as stream:
            stream.truncate(2**33)
    elif way == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    with pytest.raises(ValueError, match=r"holds no saved conversation: conversation.json (has|is not)"):
        chat(policy="full").load_conversation(tmp_path)


@pytest.mark.parametrize("again", [False, True])
def test_a_question_that_is_refused_leaves_the_conversation(chat, again):
    model = chat(policy="full")
    (answer,) = talk(model, QUESTIONS[:1])
    messages = [HumanMessage(QUESTIONS[0])]
    with pytest.raises(ValueError, match="policy='sinks'"):
        model.invoke([*messages, answer, HumanMessage("Hello " * 700)])
    if again:
        with pytest.raises(ValueError, match="shortest valid answer"):
            model.invoke(messages, response_format={"type": "json_object"}, max_tokens=1)
    else:
        messages += [answer, HumanMessage("On")]
    after = model.invoke(messages)
    assert after.text == chat(policy="full").invoke(messages).text
    assert read(after) > 10


def test_threads_do_not_mix_and_the_oldest_goes(chat):
    model = chat(max_conversations=2, policy="full")
    names = [{"configurable": {"thread_id": name}} for name in "abc"]
    answer = model.invoke("Hello", names[0])
    going_on = [HumanMessage("Hello"), answer, HumanMessage("On")]
    assert read(model.invoke(going_on, names[1])) == 0
    assert read(model.invoke(going_on)) == 0
    model.invoke("Hello", names[2])
    assert read(model.invoke(going_on, names[0])) == 0
    model.forget_conversation("a")
    assert model.cache_bytes("a") == 0


def test_a_turn_after_a_call_reads_only_what_is_new(chat):
    model = chat(max_tokens=140, policy="full").bind_tools([weather], tool_choice="any")
    answer = model.invoke("Hello")
    result = weather.invoke(answer.tool_calls[0])
    after = model.invoke([HumanMessage("Hello"), answer, result])
    # The end of the call was forced, and is processed together with the next prompt.
    assert read(after) >= answer.usage_metadata["input_tokens"]


def test_a_mark_that_a_model_spells_in_letters_is_none_in_what_is_kept(tiny_chat):
    """Otherwise an empty answer with the template's end-of-turn token would continue this conversation."""
    model, tokenizer = tiny_chat
    letter_tokens = tokenizer("".join("<|im_end|>"), split_special_tokens=True).input_ids
    loaded_model = LoadedModel(model, tokenizer, "tiny")
    assert not loaded_model.control_tokens.count(letter_tokens)
    prompt = write_prompt(tokenizer, [HumanMessage("Hello")])
    conversation = Conversation(PolicyCache(make("full"), model), loaded_model)
    answer = Answer(
        loaded_model,
        conversation,
        prompt,
        loaded_model.tokenize(prompt),
        AnswerConfig(max_tokens=len(letter_tokens)),
    )
    says = iter(letter_tokens)
    answer._next = lambda logits: [next(says)]
    assert "".join(answer) == "<|im_end|>"
    control_count = loaded_model.control_tokens.count(loaded_model.tokenize(prompt))
    assert loaded_model.control_tokens.count(loaded_model.tokenize(conversation.text)) == control_count
    empty_prompt, spelled_prompt = (
        write_prompt(tokenizer, [HumanMessage("Hello"), AIMessage(text), HumanMessage("So?")])
        for text in ("", "<|im_end|>")
    )
    assert not empty_prompt.startswith(conversation.text)
    assert spelled_prompt.startswith(conversation.text)


def test_a_conversation_of_another_format_is_refused(chat, tmp_path):
    """Version 0.1.0 stored `last_prompt` as `asked`."""
    model = chat(policy="full")
    model.invoke("Hello")
    model.save_conversation(tmp_path)
    file = tmp_path / "conversation.json"
    contents = json.loads(file.read_text())
    for other_contents in (
        {"asked" if name == "last_prompt" else name: value for name, value in contents.items()},
        {name: value for name, value in contents.items() if name != "head"},
        contents | {"format": 2},
    ):
        file.write_text(json.dumps(other_contents))
        with pytest.raises(ValueError, match=r"no saved conversation of this version.*last_prompt_token"):
            model.load_conversation(tmp_path)
    file.write_text(json.dumps(contents))
    model.load_conversation(tmp_path)


@pytest.fixture
def model_and_file(chat, tmp_path):
    """Return a model, and the text file of a conversation that it has saved in `tmp_path`."""
    model = chat(policy="full")
    model.invoke("Hello")
    model.save_conversation(tmp_path)
    return model, tmp_path / "conversation.json"


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"cache": 3}', "\x00"])
def test_what_is_no_saved_conversation_is_told(text, model_and_file):
    model, file = model_and_file
    file.write_text(text)
    with pytest.raises(ValueError, match="holds no saved conversation") as error:
        model.load_conversation(file.parent)
    assert "recursion" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *((name, 5, "a text") for name in ("text", "last_prompt", "model", "cache")),
        ("pending", [2.0], "a list of tokens of the model"),
        ("pending", [10**9], "a list of tokens of the model"),
        ("head", {"1": 1}, "a list of tokens of the model"),
        ("head", [-1], "a list of tokens of the model"),
        ("last_prompt_token", True, "a token of the model"),
        ("last_prompt_token", 258, "a token of the model"),
        ("last_prompt_length", None, "a number of tokens"),
        ("last_prompt_length", -3, "a number of tokens"),
    ],
)
def test_a_field_of_another_type_is_named(name, value, expected, model_and_file):
    model, file = model_and_file
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=rf"{name}=.* in conversation.json: must be {expected}$"):
        model.load_conversation(file.parent)


def test_a_cache_of_holes_is_no_saved_conversation(model_and_file):
    model, file = model_and_file
    (cache,) = file.parent.glob("cache-*")
    os.truncate(cache, 2**36)
    with pytest.raises(ValueError, match="the rest are holes"):
        model.load_conversation(file.parent)

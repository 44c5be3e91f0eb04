"""LoadedModel: end tokens, loading, and reading in blocks."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from scrubjay.agents import LocalChatModel
from scrubjay.agents.chat import language_model
from scrubjay.agents.chat.language_model import LoadedModel, ReadingDisplay, load
from scrubjay.memory import context

from .families import FAMILIES
from .talking import QUESTIONS, read

pytestmark = pytest.mark.requires("transformers", "llguidance")


def test_ready_models_of_one_name_are_two(tiny_chat):
    one, tokenizer = tiny_chat
    other = type(one)(one.config).eval()
    both, alone = (
        LocalChatModel(model=m, temperature=0, max_tokens=12) for m in (tiny_chat, (other, tokenizer))
    )
    both.invoke(QUESTIONS[0])
    assert both.bind(model=(other, tokenizer)).invoke(QUESTIONS[0]).text == alone.invoke(QUESTIONS[0]).text
    assert read(both.bind(model=(other, tokenizer)).invoke(QUESTIONS[0])) > 0
    assert both._load((other, tokenizer)).model is other


def test_what_ends_an_answer_is_not_told_to_the_model(tiny_chat):
    model, tokenizer = tiny_chat
    ends = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5]
    try:
        assert LoadedModel(model, tokenizer, "x").end_tokens == {0, 1, 5}
        assert model.generation_config.eos_token_id == [1, 5]
    finally:
        model.generation_config.eos_token_id = ends


@pytest.mark.parametrize(("family", "mark"), [("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>")])
def test_what_a_template_writes_behind_an_answer_ends_one(tiny_chat, family, mark):
    """Neither the generation config nor the tokenizer's special tokens list it."""
    model, _ = tiny_chat
    tokenizer = FAMILIES[family]()
    tokenizer.eos_token = tokenizer.bos_token
    token = tokenizer.convert_tokens_to_ids(mark)
    assert token not in tokenizer.all_special_ids
    assert token in LoadedModel(model, tokenizer, "x").end_tokens


def test_a_template_that_takes_no_turns_of_two_adds_none(tiny_chat):
    model, tokenizer = tiny_chat
    strict = copy.copy(tokenizer)
    strict.chat_template = "{{ raise_exception('no') }}"
    assert LoadedModel(model, strict, "x").end_tokens == {0, 1}


def test_a_ready_model_is_loaded_once_while_somebody_holds_it(tiny_chat):
    model, tokenizer = tiny_chat
    first = load(tiny_chat, torch.float32, "cpu")
    assert load((model, tokenizer), torch.float32, "cpu") is first
    assert load((model, object()), torch.float32, "cpu") is not first


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1100])
def test_in_blocks_a_prompt_is_read_as_at_once(tiny_chat, size):
    model, tokenizer = tiny_chat
    tokens = [2 + place * place % 200 for place in range(size)]
    loaded_model = LoadedModel(model, tokenizer, "tiny")
    cache = context.PolicyCache(context.make("full"), model)
    logits = loaded_model.read(tokens, cache)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([tokens])).logits[0, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == size


def test_there_must_be_something_to_read(tiny_chat):
    model, tokenizer = tiny_chat
    cache = context.PolicyCache(context.make("full"), model)
    with pytest.raises(ValueError, match="no new tokens"):
        LoadedModel(model, tokenizer, "tiny").read([], cache)


@pytest.mark.parametrize(
    ("is_terminal", "output"),
    [
        (True, "\rread 400 of 1,000 tokens  ETA 6 s\rread 500 of 1,000 tokens  ETA 5 s\r" + " " * 33 + "\r"),
        (False, ""),
    ],
)
def test_a_long_reading_shows_its_progress(is_terminal, output, monkeypatch):
    class Stderr(io.StringIO):
        def isatty(self):
            return is_terminal

    stderr, clock = Stderr(), [0.0]
    monkeypatch.setattr(language_model.sys, "stderr", stderr)
    monkeypatch.setattr(language_model.time, "monotonic", lambda: clock[0])
    with ReadingDisplay(1000) as display:
        for second in range(1, 11):  # 100 tokens a second, and a terminal that is asked twice a second
            clock[0] = float(second)
            if second in (1, 2, 4, 5, 10):
                display.update(100 * second)
    assert stderr.getvalue() == output


def test_elsewhere_a_line_is_printed_every_30_seconds(monkeypatch):
    stderr, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(language_model.sys, "stderr", stderr)
    monkeypatch.setattr(language_model.time, "monotonic", lambda: clock[0])
    with ReadingDisplay(1000) as display:
        for second in range(1, 101):
            clock[0] = float(second)
            display.update(10 * second)
    lines = stderr.getvalue().splitlines()
    assert lines == [f"read {n} of 1,000 tokens  ETA {100 - n // 10} s" for n in (300, 600, 900)]

"""Incremental detokenization: whole characters, and no part of a stop sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.chat.answer import AnswerText

pytestmark = pytest.mark.requires("transformers")

# One to four tokens per character, since a token is a byte.
TEXTS = st.text(st.sampled_from("ab é鴉🐦"), max_size=12)
STOPS = st.lists(st.text(st.sampled_from("ab é"), min_size=1, max_size=3), max_size=2)


def tokenize(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@given(TEXTS, STOPS)
def test_what_is_shown_is_what_was_said_up_to_the_first_stop(tiny_chat, full_text, stops):
    _, tokenizer = tiny_chat
    text, visible_text = AnswerText(tokenizer, stops), ""
    for token in tokenize(tokenizer, full_text):
        visible_text += text.push(token)
        assert full_text.startswith(visible_text), (
            "an incomplete character was shown, or text that was withdrawn"
        )
        if text.is_stopped:
            break
    visible_text += text.finish()
    # The stop sequence that completes first ends the answer, even if another began earlier.
    ends = [full_text.index(stop) + len(stop) for stop in stops if stop in full_text]
    assert text.is_stopped == bool(ends)
    text_to_stop = full_text[: min(ends, default=len(full_text))]
    begins = [text_to_stop.index(stop) for stop in stops if stop in text_to_stop]
    assert visible_text == text_to_stop[: min(begins, default=len(text_to_stop))]
    assert text.text == text_to_stop


@given(TEXTS, st.integers(0, 12))
def test_tokens_within_a_length_make_the_whole_characters_before_it(tiny_chat, full_text, length):
    _, tokenizer = tiny_chat
    tokens = tokenize(tokenizer, full_text)
    text = AnswerText(tokenizer)
    for token in tokens:
        text.push(token)
    text.finish()
    count, end = text.tokens_within(length)
    assert tokenizer.decode(tokens[:count]) == full_text[:end] == full_text[:length]


def test_a_character_that_never_becomes_whole_is_shown_at_the_end(tiny_chat):
    _, tokenizer = tiny_chat
    text = AnswerText(tokenizer)
    first, second, *_ = tokenize(tokenizer, "a鴉")
    assert text.push(first) == "a"
    assert text.push(second) == ""
    assert text.finish() == "\ufffd"
    assert text.text == "a\ufffd"


def test_an_empty_stop_sequence_is_refused(tiny_chat):
    with pytest.raises(ValueError, match="stop=''"):
        AnswerText(tiny_chat[1], ["a", ""])

"""From tokens to text: whole characters, and nothing of what ends the answer."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.chat.text import AnswerText

# One to four tokens each, as a token is a byte.
SAID = st.text(st.sampled_from("ab é鴉🐦"), max_size=12)
STOPS = st.lists(st.text(st.sampled_from("ab é"), min_size=1, max_size=3), max_size=2)


def tokens_of(tokenizer, said):
    return tokenizer(said, add_special_tokens=False).input_ids


@given(SAID, STOPS)
def test_what_is_shown_is_what_was_said_up_to_the_first_stop(tiny_chat, said, stops):
    _, tokenizer = tiny_chat
    text, shown = AnswerText(tokenizer, stops), ""
    for token in tokens_of(tokenizer, said):
        shown += text.push(token)
        assert said.startswith(shown), "half a character was shown, or what was taken back"
        if text.stopped:
            break
    shown += text.finish()
    # The stop that is complete first ends the answer, wherever another begins.
    ends = [said.index(stop) + len(stop) for stop in stops if stop in said]
    assert text.stopped == bool(ends)
    heard = said[: min(ends, default=len(said))]
    begins = [heard.index(stop) for stop in stops if stop in heard]
    assert shown == heard[: min(begins, default=len(heard))]
    assert text.said == heard


@given(SAID, st.integers(0, 12))
def test_tokens_within_a_length_make_the_whole_characters_before_it(tiny_chat, said, length):
    _, tokenizer = tiny_chat
    tokens = tokens_of(tokenizer, said)
    text = AnswerText(tokenizer)
    for token in tokens:
        text.push(token)
    text.finish()
    count, end = text.tokens_within(length)
    assert tokenizer.decode(tokens[:count]) == said[:end] == said[:length]


def test_a_character_that_never_becomes_whole_is_shown_at_the_end(tiny_chat):
    _, tokenizer = tiny_chat
    text = AnswerText(tokenizer)
    first, second, *_ = tokens_of(tokenizer, "a鴉")
    assert text.push(first) == "a"
    assert text.push(second) == ""
    assert text.finish() == "\ufffd"
    assert text.said == "a\ufffd"


def test_an_empty_stop_sequence_is_refused(tiny_chat):
    with pytest.raises(ValueError, match="stop=''"):
        AnswerText(tiny_chat[1], ["a", ""])

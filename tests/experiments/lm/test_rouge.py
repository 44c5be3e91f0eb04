"""ROUGE-L against its definition and against the library that KAgentBench uses."""

import functools
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.experiments.lm.kagentbench import common_length, rouge_l, tokens

SENTENCES = [
    "The cat sat on the mat.",
    "Don't you think it's 3,000.5 km (about) 10:30?",
    'He said "hello, Ada" and left -- quickly...',
    "今天，天气很好。温度20℃。",
    "Beijing 北京 is the capital; 人口 2,189万.",
    "I cannot go: we'll see. Next sentence isn't here!",
    "visit https://a.example/x?y=1&z=2 now",
    "Mr Smith's dogs' bones",
    "a@b.com costs $5.50 (50%)",
    "2022年中，6月是全球最高气温。",
]
letters = st.lists(st.sampled_from("abcd"), max_size=12)


@functools.cache
def longest(left, right):
    """Return the length of the longest common subsequence by its recurrence."""
    if not left or not right:
        return 0
    if left[-1] == right[-1]:
        return longest(left[:-1], right[:-1]) + 1
    return max(longest(left[:-1], right), longest(left, right[:-1]))


@given(letters, letters)
def test_the_bits_follow_the_recurrence(left, right):
    assert common_length(left, right) == longest(tuple(left), tuple(right))


@given(letters, letters, letters)
def test_a_common_subsequence_obeys_its_laws(left, right, more):
    length = common_length(left, right)
    assert length == common_length(right, left) == common_length(left[::-1], right[::-1])
    assert common_length(left, left) == len(left)
    assert length <= common_length(left + more, right) <= length + len(more)
    assert common_length(left * 20, left * 20) == 20 * len(left)


@given(st.sampled_from(SENTENCES), st.sampled_from(SENTENCES))
def test_likeness_is_that_of_rouge_chinese(left, right):
    from rouge_chinese import Rouge

    rouge = Rouge(metrics=["rouge-l"])
    scores: Any
    (scores,) = rouge.get_scores(" ".join(tokens(left)), " ".join(tokens(right)))
    assert rouge_l(left, right) == pytest.approx(scores["rouge-l"]["f"], abs=1e-7)


@pytest.mark.parametrize("text", SENTENCES)
def test_words_are_those_of_nltk(text):
    from nltk.tokenize import NLTKWordTokenizer

    words = NLTKWordTokenizer()
    expected = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        for word in words.tokenize(sentence):
            word = '"' if word in ("``", "''") else word
            expected += list(word) if any(unicodedata.category(c) == "Lo" for c in word) else [word]
    assert tokens(text) == expected


@given(st.text(), st.text())
def test_any_texts_have_a_likeness(left, right):
    assert 0 <= rouge_l(left, right) == rouge_l(right, left) <= 1
    assert rouge_l(left, left) == (1 if left.split() else 0)
    assert rouge_l(left, "") == 0

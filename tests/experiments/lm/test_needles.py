"""Tests of needle tasks: needle positions, unique keys, and the largest size that fits."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.experiments.lm.needles import (
    NOISE,
    Example,
    Needles,
    draw_keys,
    fit,
    insert,
    split_sentences,
    string_match_all,
    words,
)

pytestmark = pytest.mark.requires("wonderwords")

SENTENCES = split_sentences("It rained. The heron, as ever, stood!\nDid it\nmove? " * 3 + "No.")


@settings(max_examples=30)
@given(size=st.integers(1, 60), depth=st.floats(0, 100), seed=st.integers(0, 99))
def test_a_needle_stands_at_its_depth(size, depth, seed):
    example = Needles().build(size, random.Random(seed), SENTENCES, depth)
    pieces = split_sentences(example.context)
    (place,) = [i for i, piece in enumerate(pieces) if "secret" in piece]
    assert place == round(size * depth / 100)
    del pieces[place]
    assert pieces == [SENTENCES[i % len(SENTENCES)] for i in range(size)]


@given(
    hay=st.lists(st.just(NOISE), max_size=9),
    places=st.lists(st.integers(0, 9), max_size=5),
)
def test_insertion_keeps_the_hay_and_the_order(hay, places):
    places = [place % (len(hay) + 1) for place in places]
    needles = [str(number) for number in range(len(places))]
    pieces = insert(hay, needles, places)
    assert [piece for piece in pieces if piece == NOISE] == hay
    for needle, place in zip(needles, places, strict=True):
        assert pieces[: pieces.index(needle)].count(NOISE) == place
    stable = sorted(needles, key=lambda needle: places[int(needle)])
    assert [piece for piece in pieces if piece != NOISE] == stable


@given(length=st.integers(20, 400), fixed_tokens=st.integers(1, 19), per_unit=st.integers(1, 7))
def test_the_largest_that_fits_is_found(length, fixed_tokens, per_unit):
    def build(size):
        return Example("", " ".join(["word"] * size), "", "", ("word",), 1)

    def count_tokens(example):
        return fixed_tokens + per_unit * (len(example.context.split()) - 1)

    size = len(fit(build, length, count_tokens).context.split())
    assert fixed_tokens + per_unit * (size - 1) <= length
    assert fixed_tokens + per_unit * size > length - length // 200


def test_what_cannot_be_hidden_is_refused():
    with pytest.raises(ValueError, match="queries=2"):
        Needles(keys=1, queries=2)
    with pytest.raises(ValueError, match="give a text"):
        Needles().build(3, random.Random(0))


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [("word", r"[a-z]+-[a-z]+"), ("number", r"[1-9]\d{6}"), ("uuid", r"[0-9a-f-]{14}4[0-9a-f-]{21}")],
)
def test_keys_differ_and_begin_alike_however_many(kind, pattern):
    few, many = (draw_keys(random.Random(3), kind, number) for number in (5, 300))
    assert many[:5] == few
    assert len(set(many)) == 300
    assert all(re.fullmatch(pattern, key) for key in many)


def test_there_are_words_for_long_lists():
    assert [
        len(words(part)) > least for part, least in (("noun", 6000), ("adjective", 800), ("verb", 900))
    ] == [True, True, True]


def test_the_metric_is_the_part_that_is_found():
    assert string_match_all("It is a HERON, and 42", ["heron", "42", "43", "heroes"]) == 0.5
    with pytest.raises(ValueError, match="empty"):
        string_match_all("anything", [])

"""Untrusted text is printed without control characters and stays unchanged as JSON."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.experiments.cli.untrusted_text import as_json, one_line, printable, table

_TRICKS = "\x00\x07\b\r\x1b\x7f\x85\x9b\u202e\u2066\u200f\u2028\ufeff\ud800\udfff"
NASTY = st.text(st.one_of(st.characters(), st.sampled_from(_TRICKS)))


def steers(text: str) -> list[str]:
    """Return control characters and surrogates in a text, by Unicode category instead of our own list."""
    turning = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return [
        letter
        for letter in text
        if (unicodedata.category(letter) == "Cc" and letter not in "\n\t")
        or unicodedata.category(letter) in ("Zl", "Zp", "Cs")
        or unicodedata.bidirectional(letter) in turning
    ]


@given(NASTY)
def test_nothing_shown_steers(text):
    assert not steers(printable(text))
    line = one_line(text)
    assert not steers(line)
    assert "\n" not in line
    assert "\t" not in line
    assert len(line) <= 1002
    assert not steers(as_json([text]))
    # JSON joins two adjacent surrogates to one character.
    assert json.loads(as_json({"a": [text]})) == json.loads(json.dumps({"a": [text]}))
    assert steers(table([[text, "x"], ["y", text]])) == []


@given(st.text(st.characters(categories=["L", "N", "P", "Sm", "Mn"], exclude_characters="\ufeff")))
def test_letters_stay_what_they_are(text):
    assert printable(text) == text
    assert json.loads(as_json(text)) == text


@pytest.mark.parametrize(
    "sequence", ["\x1b[2J", "\x9b31m", "\x1b]0;title\x07", "a\rb", "\u202etxt.exe", "\b\b"]
)
def test_known_tricks_are_shown_as_what_they_are(sequence):
    assert "\N{REPLACEMENT CHARACTER}" in printable(sequence)

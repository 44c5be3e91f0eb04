"""Claims of short texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.bank.search.claims import MAX_LENGTH, contradicts, read_claims

PHRASES = """
I A 我 住在 , . ? - & ' : My my live lives in Lyon moved to name is now works at Acme 24 years old brother Tom
's and from favorite color prefer over
"""
WORDS = [*PHRASES.split(), "\n"]


def values(text):
    return {(claim.subject, claim.attribute): " ".join(claim.value) for claim in read_claims(text)}


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("I live in New York now.", {(":i ", "home"): "new york"}),
        ("Well, I just moved from Bonn to Kiel, and I work for Acme.",
         {(":i ", "home"): "kiel", (":i ", "work"): "acme"}),
        ("Lives in Rome.", {(":user", "home"): "rome"}),
        ("My sister Ada is 7 years old.", {(":i sister ada", "age"): "7"}),
        ("Ben: I live in Oslo.", {("ben:i ", "home"): "oslo"}),
        ("The user's favourite colour is sea green.", {(":user", "favorite color"): "sea green"}),
        ("我现在住在上海。", {(":i ", "home"): "上海"}),
        ("I live in Rome. I live in Oslo.", {}),
        ("I live in Rome and Oslo.", {}),
        ("She lives in Rome.", {}),
        ("Do I live in Rome?", {}),
        ("I live in a house.", {}),
        ("I no longer live in Rome.", {(":i ", "home"): "rome"}),
    ],
)  # fmt: skip
def test_a_text_makes_these_claims(text, claims):
    assert values(text) == claims


def test_a_long_text_makes_no_claim():
    text = "I live in Lyon. "
    assert read_claims(text + "x" * (MAX_LENGTH - len(text)))
    assert read_claims(text + "x" * (MAX_LENGTH - len(text) + 1)) == read_claims(text * 2**16) == ()


@pytest.mark.parametrize(
    ("old", "new", "result"),
    [
        ("I live in Lyon.", "I live in Nice.", True),
        ("I live in Lyon.", "I live in Lyon, France.", False),
        ("I live in Lyon.", "I live in France.", False),
        ("I live in Spain.", "I live in France.", True),
        ("I live in NYC.", "I live in New York City.", False),
        ("I am 30 years old.", "I am 29 years old.", False),
        ("I work at Acme.", "I no longer work at Acme.", True),
        ("I work at Acme.", "I no longer work at Globex.", None),
        ("I work at Acme.", "I quit my job.", True),
        ("I prefer tea to coffee.", "I prefer coffee to tea.", True),
        ("I prefer tea to coffee.", "I prefer trains to planes.", None),
        ("My gym is Fit.", "My gym is Box.", None),
        ("My gym is Fit.", "My gym is now Box.", True),
    ],
)
def test_a_newer_claim_replaces_another_value(old, new, result):
    (first,), (second,) = read_claims(old), read_claims(new)
    assert (first.subject, first.attribute) == (second.subject, second.attribute)
    assert contradicts(first, second) is result


@given(st.one_of(st.text(max_size=700), st.lists(st.sampled_from(WORDS), max_size=120).map(" ".join)))
def test_any_text_has_claims_with_one_value_per_subject_and_attribute(text):
    claims = read_claims(text)
    keys = [(claim.subject, claim.attribute, claim.is_end) for claim in claims]
    assert len(set(keys)) == len(keys)
    for old in claims:
        assert old.is_end or contradicts(old, old) is False
        for new in claims:
            if (old.subject, old.attribute) == (new.subject, new.attribute) and not old.is_end:
                assert contradicts(old, new) in (True, False, None)

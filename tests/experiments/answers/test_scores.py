"""The four scorers: closed cases, their laws, and the library that counts ROUGE-L of words."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.experiments.answers.scores import (
    SCORERS,
    exact,
    rouge_l,
    score,
    substring,
    token_f1,
    words,
)

CASES = [
    # reference, answer, exact, substring, F1, ROUGE-L
    ("Paris", "paris.", 1, 1, 1, 1),
    ("the Eiffel Tower", "Eiffel Tower!", 1, 1, 1, 4 / 5),
    ("Paris", "It is Paris, in France", 0, 1, 1 / 3, 1 / 3),
    ("5 km", "15 km", 0, 0, 1 / 2, 1 / 2),
    ("red and blue", "blue and red", 0, 0, 1, 1 / 3),
    ("no no yes", "no yes yes", 0, 0, 2 / 3, 2 / 3),
    ("7 May 2023", "", 0, 0, 0, 0),
    ("", "anything", 0, 0, 0, 0),
    ("...", "!", 1, 0, 1, 0),
    ("the", "a", 1, 0, 1, 0),
    ("北京", "在北京。", 0, 1, 4 / 5, 4 / 5),
    ("U.S.", "US", 1, 1, 1, 1),
    ("１０", "10", 1, 1, 1, 1),
]
texts = st.text(st.sampled_from("ab the 北京.!A "), max_size=12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} / {case[1]}")
def test_closed_cases(case):
    reference, answer, *expected = case
    scores = [compare(reference, answer) for compare in (exact, substring, token_f1, rouge_l)]
    assert scores == pytest.approx(expected)


@given(texts, texts)
def test_laws(reference, answer):
    scores = {name: compare(reference, answer) for name, compare in SCORERS.items()}
    assert all(0 <= value <= 1 for value in scores.values())
    if words(reference) and scores["exact"]:
        assert scores["f1"] == 1
    if scores["substring"]:
        assert scores["f1"] > 0
    for compare in (exact, token_f1, rouge_l):
        assert compare(reference, answer) == pytest.approx(compare(answer, reference))
    # Letters, marks and white space at the ends are nothing.
    assert {name: compare(reference.upper(), f" {answer}?!") for name, compare in SCORERS.items()} == scores


@given(st.lists(texts, min_size=1, max_size=4), texts)
def test_of_several_right_answers_the_likest_counts(references, answer):
    best = score(references, answer)
    assert best == {
        name: max(compare(one, answer) for one in references) for name, compare in SCORERS.items()
    }
    assert score([], answer) == dict.fromkeys(SCORERS, 0.0)


@given(
    st.lists(st.sampled_from(["a", "b", "the", "c", "京"]), min_size=1),
    st.lists(st.sampled_from(["a", "b", "the", "c", "京"]), min_size=1),
)
def test_rouge_is_that_of_rouge_chinese(left, right):
    from rouge_chinese import Rouge

    rouge = Rouge(metrics=["rouge-l"])
    scores: Any
    (scores,) = rouge.get_scores(" ".join(left), " ".join(right))
    assert rouge_l(" ".join(left), " ".join(right)) == pytest.approx(scores["rouge-l"]["f"], abs=1e-7)

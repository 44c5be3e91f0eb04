"""Four scores of an answer against a reference, without a judge or a model.

Texts are lower-cased, punctuation is removed, and articles count in ROUGE-L only, as in SQuAD (Rajpurkar et
al. 2016) and MemoryAgentBench. Words in scripts without upper and lower case, such as Chinese, are split into
letters. Substrings match whole words, whereas MemoryAgentBench also finds "5" in "15".
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from scrubjay.experiments.lm.kagentbench import common_length

_ARTICLES = frozenset(("a", "an", "the"))


def words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation.

    A word in a script without upper and lower case, such as Chinese, is split into its letters.
    """
    letters = (
        letter
        for letter in unicodedata.normalize("NFKC", text).lower()
        if unicodedata.category(letter)[0] not in "PS"
    )
    result: list[str] = []
    for word in "".join(letters).split():
        caseless = any(unicodedata.category(letter) == "Lo" for letter in word)
        result += list(word) if caseless else [word]
    return result


def exact(reference: str, answer: str) -> float:
    """Return 1 if reference and answer have the same words in the same order, ignoring articles, else 0."""
    return float(_content(reference) == _content(answer))


def substring(reference: str, answer: str) -> float:
    """Return 1 if the answer contains the reference as consecutive words, ignoring articles, else 0."""
    reference_words, answer_words = _content(reference), _content(answer)
    return float(bool(reference_words) and f" {' '.join(reference_words)} " in f" {' '.join(answer_words)} ")


def token_f1(reference: str, answer: str) -> float:
    """Return the F1 score of the words that both texts share, counted with repeats and without articles."""
    reference_words, answer_words = _content(reference), _content(answer)
    if not reference_words or not answer_words:
        return float(reference_words == answer_words)
    return (
        2
        * sum((Counter(reference_words) & Counter(answer_words)).values())
        / (len(reference_words) + len(answer_words))
    )


def rouge_l(reference: str, answer: str) -> float:
    """Return ROUGE-L (Lin 2004) without stemming: the F1 score of the longest common subsequence of words."""
    reference_words, answer_words = words(reference), words(answer)
    return (
        2 * common_length(reference_words, answer_words) / (len(reference_words) + len(answer_words))
        if reference_words and answer_words
        else 0.0
    )


SCORERS: Mapping[str, Callable[[str, str], float]] = {
    "exact": exact,
    "substring": substring,
    "f1": token_f1,
    "rouge_l": rouge_l,
}


def score(references: Sequence[str], answer: str) -> dict[str, float]:
    """Return four scores of an answer by name. Each is the maximum over the references."""
    return {name: _best(compare(one, answer) for one in references) for name, compare in SCORERS.items()}


def _best(values: Iterable[float]) -> float:
    return max(values, default=0.0)


def _content(text: str) -> list[str]:
    return [word for word in words(text) if word not in _ARTICLES]

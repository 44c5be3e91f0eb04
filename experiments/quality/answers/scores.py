"""Four ways to compare an answer with a right one, as agents' memories are measured: no judge, no model.

Letters are small, punctuation is nothing, and articles count in ROUGE-L alone, as in SQuAD (Rajpurkar et al.
2016) and MemoryAgentBench; a word of a script without spaces counts by letters. What is held is whole words,
where MemoryAgentBench finds "5" in "15", too.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from scrubjay.experiments.language.rouge import common_length

_ARTICLES = frozenset(("a", "an", "the"))


def words(text: str) -> list[str]:
    """Return the words of a text, small and without punctuation; of Chinese and its like the letters."""
    kept = (
        letter
        for letter in unicodedata.normalize("NFKC", text).lower()
        if unicodedata.category(letter)[0] not in "PS"
    )
    found: list[str] = []
    for word in "".join(kept).split():
        uncased = any(unicodedata.category(letter) == "Lo" for letter in word)
        found += list(word) if uncased else [word]
    return found


def exact(reference: str, answer: str) -> float:
    """Return 1 if both have the same words, articles aside, else 0."""
    return float(_content(reference) == _content(answer))


def substring(reference: str, answer: str) -> float:
    """Return 1 if the answer holds all words of the reference in a row, articles aside, else 0."""
    wanted, said = _content(reference), _content(answer)
    return float(bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(said)} ")


def token_f1(reference: str, answer: str) -> float:
    """Return the F1 of the words that both have, as often as both have them, articles aside."""
    wanted, said = _content(reference), _content(answer)
    if not wanted or not said:
        return float(wanted == said)
    return 2 * sum((Counter(wanted) & Counter(said)).values()) / (len(wanted) + len(said))


def rouge_l(reference: str, answer: str) -> float:
    """Return the F1 of the longest common subsequence of words, ROUGE-L (Lin 2004) without stems."""
    wanted, said = words(reference), words(answer)
    return 2 * common_length(wanted, said) / (len(wanted) + len(said)) if wanted and said else 0.0


SCORERS: Mapping[str, Callable[[str, str], float]] = {
    "exact": exact,
    "substring": substring,
    "f1": token_f1,
    "rouge_l": rouge_l,
}


def score(references: Sequence[str], answer: str) -> dict[str, float]:
    """Return what every scorer says of an answer, compared with the right one that is most like it."""
    return {name: _best(compare(one, answer) for one in references) for name, compare in SCORERS.items()}


def _best(values: Iterable[float]) -> float:
    return max(values, default=0.0)


def _content(text: str) -> list[str]:
    return [word for word in words(text) if word not in _ARTICLES]

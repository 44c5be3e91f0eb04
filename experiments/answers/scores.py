"""Four scores of an answer against a reference, without a judge or a model, and the table of all scores.

Texts are lower-cased, punctuation is removed, and articles count in ROUGE-L only, as in SQuAD (Rajpurkar et
al. 2016) and MemoryAgentBench. Words in scripts without upper and lower case, such as Chinese, are split into
letters. Substrings match whole words, whereas MemoryAgentBench also finds "5" in "15".
"""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from statistics import fmean
from typing import Any

from scrubjay.experiments.answers.views import LABELS
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.lm.kagentbench import common_length
from scrubjay.experiments.measurements import markdown, processor, version

_ARTICLES = frozenset(("a", "an", "the"))
_READER_LABELS: Mapping[str, str] = {"": "", "first": ", first fact", "newest": ", newest fact"}
_MEASURES: Mapping[str, str] = {
    "needed": "recall",
    "answer held": "held",
    "outdated first": "stale",
    "exact": "exact",
    "substring": "substring",
    "F1": "f1",
    "ROUGE-L": "rouge_l",
    "judged right": "judged",
}
COLUMN_NOTES = """\
"needed": fraction of the records needed for the answer that are shown. "answer held": fraction of questions
with a correct answer in the shown text. "outdated first": fraction of questions with a replaced fact above
the current one. "exact" to "ROUGE-L" compare the answer with the reference. "tokens": mean number of tokens
shown per question."""
"""Explanation of the columns."""


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
    return {
        name: max((compare(one, answer) for one in references), default=0.0)
        for name, compare in SCORERS.items()
    }


def _content(text: str) -> list[str]:
    return [word for word in words(text) if word not in _ARTICLES]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with rows by ability and arm, and rows for all abilities together.

    Measures without any value are omitted.
    """
    measures = {
        label: name for label, name in _MEASURES.items() if any(row[name] is not None for row in rows)
    }
    abilities = list(dict.fromkeys(row["ability"] for row in rows))
    lines = []
    for ability in [*abilities, None] if len(abilities) > 1 else abilities:
        of_ability = [row for row in rows if ability in (None, row["ability"])]
        for arm in LABELS:
            for reader in dict.fromkeys(row["reader"] for row in of_ability):
                some = [row for row in of_ability if (row["arm"], row["reader"]) == (arm, reader)]
                if some:
                    lines.append(_line(ability or "all", arm, reader, some, measures.values()))
    return markdown(["arm", "question type", "questions", *measures, "tokens"], lines)


def head(command: str, window: int, prompts: Mapping[str, tuple[str, str]]) -> str:
    """Return the text above the table; `prompts` maps each task to its model and prompt."""
    paragraphs = [
        f"`{one_line(command)}`",
        f"{version()}, Python {sys.version.split()[0]}, {processor()}, {date.today()}.",
        f"At most {window:,} tokens are shown. {COLUMN_NOTES}",
    ]
    for task, (model, prompt) in prompts.items():
        paragraphs.append(f"{task} by {one_line(model)}, with this prompt:\n\n```\n{prompt}\n```")
    return "\n\n".join(paragraphs)


def _line(
    ability: str, arm: Any, reader: str, rows: Sequence[Mapping[str, Any]], measures: Iterable[str]
) -> list[str]:
    cut = sum(row["cut"] for row in rows)
    label = f"{LABELS[arm]}{_READER_LABELS.get(reader, '')}"
    if cut and arm == "full":
        label += f", cut for {cut:,} of {len(rows):,}"
    means = []
    for name in measures:
        numbers = [row[name] for row in rows if row[name] is not None]
        means.append(f"{fmean(numbers):.3f}" if numbers else "-")
    tokens = f"{fmean(row['tokens'] for row in rows):,.0f}"
    return [label, one_line(ability).replace("|", "/"), f"{len(rows):,}", *means, tokens]

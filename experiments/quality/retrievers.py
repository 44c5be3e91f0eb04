"""Retrievers of the recall benchmark: each indexes a conversation and returns a recall function.

The baselines are components of other memories at their documented settings: SQLite's keyword index, bm25s,
langchain's vector store, exact cosine similarity, the fusion of mem0 (candidates by vectors only, mean of
cosine and a sigmoid of BM25), and reciprocal rank fusion. Two convex combinations (Bruch, Gai and Ingber
2023, arXiv 2210.11934) are improved: they remove stop words and index Chinese by character pairs, and the
second also adds a fraction of the scores of the neighboring turns.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from scrubjay.experiments.answers.views import bm25_index, store_turns
from scrubjay.experiments.lm.conversations import Conversation, Question

Recall = Callable[[Question, int], list[int]]
"""Function from a question and k to indices of turns, best first."""
Arm = Callable[[Conversation, Embeddings], Recall]

_DEPTH = 200
_RRF = 60
_MEM0_THRESHOLD = 0.1
_NEIGHBOURS = 0.3


def most_recent(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall the last turns, ignoring the question."""
    newest = list(range(len(conversation.turns)))[::-1]
    return lambda question, k: newest[:k]


def keyword_index(conversation: Conversation, embeddings: Embeddings, careful: bool = False) -> Recall:
    """Recall with SQLite's FTS5: turns that contain any stemmed word of the question, ranked by BM25.

    With `careful`, stop words in questions are ignored, and Chinese is indexed as character pairs.
    """
    search = bm25_index(conversation, careful)
    return lambda question, k: [place for place, _ in search(question.text, k)]


keyword_index_without_stop_words: Arm = partial(keyword_index, careful=True)


def bm25s_index(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Return a retriever that searches with bm25s and its English stop words.

    Raises ModuleNotFoundError if bm25s is not installed.
    """
    try:
        bm25s: Any = importlib.import_module("bm25s")
    except ModuleNotFoundError as error:
        message = "this retriever needs bm25s: pip install 'scrubjay[bench]'"
        raise ModuleNotFoundError(message, name="bm25s") from error
    texts = [turn.text for turn in conversation.turns]
    tokens = bm25s.tokenize(texts, stopwords="en", show_progress=False)
    index = bm25s.BM25()
    # Texts of stop words only give an empty vocabulary, which bm25s cannot index.
    has_words = bool(tokens.vocab)
    if has_words:
        index.index(tokens, show_progress=False)

    def recall(question: Question, k: int) -> list[int]:
        words = bm25s.tokenize([question.text], stopwords="en", show_progress=False)
        if not has_words or not words.vocab:
            return []
        places, scores = index.retrieve(words, k=min(k, len(texts)), show_progress=False)
        return [int(place) for place, score in zip(places[0], scores[0], strict=True) if score > 0]

    return recall


def cosine(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall by exact cosine similarity; ties are ordered newest first."""
    near = _cosines(conversation, embeddings)
    return lambda question, k: _best(near(question.text), k)


def vector_store(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall with langchain's InMemoryVectorStore."""
    store = InMemoryVectorStore(embeddings)
    store.add_texts(
        [turn.text for turn in conversation.turns], ids=[*map(str, range(len(conversation.turns)))]
    )
    return lambda question, k: [int(d.id or "") for d in store.similarity_search(question.text, k)]


def mem0_fusion(conversation: Conversation, embeddings: Embeddings) -> Recall:
    """Recall with mem0's scoring, without its entity store: mean of cosine and a sigmoid of BM25."""
    words, cosines = bm25_index(conversation), _cosines(conversation, embeddings)

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
    """Recall by reciprocal rank fusion of keyword index and cosine, with equal weights."""
    words, cosines = bm25_index(conversation), _cosines(conversation, embeddings)

    def recall(question: Question, k: int) -> list[int]:
        score: dict[int, float] = {}
        keyword_places = [place for place, _ in words(question.text, _DEPTH)]
        for places in (keyword_places, [int(i) for i in np.argsort(-cosines(question.text))[:_DEPTH]]):
            for rank, place in enumerate(places, 1):
                score[place] = score.get(place, 0.0) + 1 / (_RRF + rank)
        return sorted(score, key=lambda place: -score[place])[:k]

    return recall


def convex(neighbours: float = 0.0) -> Arm:
    """Return a retriever that averages cosine and BM25, each scaled to the range 0 to 1 over all turns.

    Each turn's score is then increased by `neighbours` times the sum of the scores of the two adjacent turns.
    """

    def arm(conversation: Conversation, embeddings: Embeddings) -> Recall:
        words, cosines = bm25_index(conversation, careful=True), _cosines(conversation, embeddings)

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
    """Return a retriever that uses a `MemoryBank` with these options, without embeddings if not `dense`.

    If `timely` is True, the bank also knows the record that each turn replaces, and the time at which each
    answer must be valid.
    """

    def arm(conversation: Conversation, embeddings: Embeddings) -> Recall:
        memory_bank, place_of = store_turns(
            conversation, embeddings if dense else None, supersedes=timely, at_once=False, **options
        )

        def recall(question: Question, k: int) -> list[int]:
            hits = memory_bank.search(question.text, k, at=question.at if timely else None)
            return [place_of[hit.id] for hit in hits]

        return recall

    return arm


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
    """Return the indices of the `k` highest scores; among equal scores the highest index is first."""
    return (len(scores) - 1 - np.argsort(-scores[::-1], kind="stable")[:k]).tolist()


def _from_0_to_1(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / max(float(np.ptp(scores)), 1e-9)


def _mem0_sigmoid(terms: int) -> tuple[float, float]:
    """Return midpoint and slope of mem0's sigmoid of BM25 scores, for a question of `terms` words."""
    for most, middle, slope in ((3, 5.0, 0.7), (6, 7.0, 0.6), (9, 9.0, 0.5), (15, 10.0, 0.5)):
        if terms <= most:
            return middle, slope
    return 12.0, 0.5

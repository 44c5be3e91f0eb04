"""Reranking: a model that reads query and text together orders the best hits of a search again.

Cross-encoders are slower than a search and more precise. They see the first `DEPTH` hits, or `k` if that is
more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from scrubjay.memory.bank.record import Hit
from scrubjay.memory.bank.title import text_to_embed

DEPTH = 50
"""Number of hits that a reranker reads."""


@runtime_checkable
class _Predicts(Protocol):
    """Cross-encoder of sentence-transformers."""

    def predict(self, sentences: Any) -> Any: ...


@runtime_checkable
class _Scores(Protocol):
    """Cross-encoder of LangChain."""

    def score(self, text_pairs: Any) -> Any: ...


Reranker = Callable[[str, list[str]], Sequence[float]] | _Predicts | _Scores
"""Function of a query and texts that returns a number for each text, larger for a better one.

A cross-encoder is also accepted: an object with the method `predict` of sentence-transformers' `CrossEncoder`
or `score` of LangChain's `BaseCrossEncoder`, which takes pairs of query and text.
"""


def check_reranker(rerank: Any) -> None:
    """Raise TypeError unless `rerank` is a reranker."""
    if not isinstance(rerank, _Predicts | _Scores) and not callable(rerank):
        raise TypeError(
            f"rerank={rerank!r:.80}: pass a function of a query and texts that returns scores, or a "
            "cross-encoder with `predict` or `score`"
        )


def rerank_hits(rerank: Reranker, query: str, hits: Sequence[Hit]) -> list[Hit]:
    """Return the hits with the scores of a reranker, best first; ties keep their order.

    A title is put before the text, as in an embedding. Raises ValueError unless the reranker returns one
    finite number for each hit.
    """
    if not hits:
        return []
    texts = [text_to_embed(hit.text, hit.provenance) for hit in hits]
    if isinstance(rerank, _Predicts):
        values = rerank.predict([(query, text) for text in texts])
    elif isinstance(rerank, _Scores):
        values = rerank.score([(query, text) for text in texts])
    else:
        values = rerank(query, texts)
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the reranker returned no numbers: {error}") from None
    if scores.shape != (len(texts),) or not np.isfinite(scores).all():
        raise ValueError(
            f"the reranker returned scores of the shape {scores.shape} for {len(texts)} texts; it must "
            "return one finite number for each text"
        )
    order = np.argsort(-scores, kind="stable").tolist()
    return [dataclasses.replace(hits[place], score=float(scores[place])) for place in order]

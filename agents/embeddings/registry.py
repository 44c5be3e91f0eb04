"""Embeddings by the names that the command line has for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

EmbeddingsName = Literal["minilm", "e5"]


def make_embeddings(name: EmbeddingsName) -> Embeddings:
    """Return the embeddings; their weights are read at the first use.

    Raises ModuleNotFoundError naming the extra that brings them.
    """
    from scrubjay.agents.embeddings.e5 import E5Embeddings
    from scrubjay.agents.embeddings.minilm import MiniLMEmbeddings

    return {"minilm": MiniLMEmbeddings, "e5": E5Embeddings}[name]()

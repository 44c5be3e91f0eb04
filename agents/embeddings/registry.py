"""Embedding models by their command-line names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

EmbeddingsName = Literal["minilm", "e5"]
"""Name of an embedding model: minilm reads English, e5 reads many languages."""


def make_embeddings(name: EmbeddingsName) -> Embeddings:
    """Build an embedding model; its weights are loaded at the first call.

    Raises:
        ModuleNotFoundError: If the weights are not installed; the message names the extra to install.
    """
    from scrubjay.agents.embeddings.e5 import E5Embeddings
    from scrubjay.agents.embeddings.minilm import MiniLMEmbeddings

    return {"minilm": MiniLMEmbeddings, "e5": E5Embeddings}[name]()

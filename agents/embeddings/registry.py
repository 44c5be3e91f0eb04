"""Embedding models by their command-line names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

EmbeddingsName = Literal["minilm", "e5"]


def make_embeddings(name: EmbeddingsName) -> Embeddings:
    """Build an embedding model; its weights are loaded at the first call.

    Raises ModuleNotFoundError if the weights are not installed; the message names the extra to install.
    """
    from scrubjay.agents.embeddings.e5 import E5Embeddings
    from scrubjay.agents.embeddings.minilm import MiniLMEmbeddings

    return {"minilm": MiniLMEmbeddings, "e5": E5Embeddings}[name]()

"""Offline sentence embeddings; the weights are installed as Python packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.agents.embeddings.e5 import E5Embeddings as E5Embeddings
    from scrubjay.agents.embeddings.minilm import MiniLMEmbeddings as MiniLMEmbeddings
    from scrubjay.agents.embeddings.registry import EmbeddingsName as EmbeddingsName
    from scrubjay.agents.embeddings.registry import make_embeddings as make_embeddings

# Lazy imports: each model loads only its own dependencies.
__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "e5": ["E5Embeddings"],
        "minilm": ["MiniLMEmbeddings"],
        "registry": ["EmbeddingsName", "make_embeddings"],
    },
)

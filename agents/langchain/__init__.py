"""The memory bank's faces towards LangChain and LangGraph.

LangChain's core is enough for the retriever, the history, the tools and the embeddings; the store, the checkpointer
and the middleware need the extra `langgraph`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay.kernels.first_use import imported_on_first_use

if TYPE_CHECKING:
    from scrubjay.agents.langchain.checkpointer import Checkpointer
    from scrubjay.agents.langchain.e5 import E5Embeddings
    from scrubjay.agents.langchain.history import BankChatMessageHistory
    from scrubjay.agents.langchain.middleware import BankMiddleware
    from scrubjay.agents.langchain.minilm import MiniLMEmbeddings
    from scrubjay.agents.langchain.retriever import BankRetriever
    from scrubjay.agents.langchain.store import BankStore
    from scrubjay.agents.langchain.tools import memory_tools

__all__ = [
    "BankChatMessageHistory",
    "BankMiddleware",
    "BankRetriever",
    "BankStore",
    "Checkpointer",
    "E5Embeddings",
    "MiniLMEmbeddings",
    "memory_tools",
]

# Each face loads only the framework that it needs.
__getattr__ = imported_on_first_use(
    __name__,
    {
        "checkpointer": ["Checkpointer"],
        "e5": ["E5Embeddings"],
        "history": ["BankChatMessageHistory"],
        "middleware": ["BankMiddleware"],
        "minilm": ["MiniLMEmbeddings"],
        "retriever": ["BankRetriever"],
        "store": ["BankStore"],
        "tools": ["memory_tools"],
    },
    extras={"langchain": "langgraph", "langgraph": "langgraph"},
)

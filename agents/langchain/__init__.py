"""LangChain and LangGraph integrations of the memory bank, and a reader of long texts.

The retriever, the chat history, the tools and the embeddings need langchain-core only; the store, the
checkpointer and the middleware need the extra `langgraph`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.agents.embeddings.e5 import E5Embeddings as E5Embeddings
    from scrubjay.agents.embeddings.minilm import MiniLMEmbeddings as MiniLMEmbeddings
    from scrubjay.agents.langchain.checkpointer import Checkpointer as Checkpointer
    from scrubjay.agents.langchain.consolidation import ModelDecider as ModelDecider
    from scrubjay.agents.langchain.history import BankChatMessageHistory as BankChatMessageHistory
    from scrubjay.agents.langchain.middleware import BankMiddleware as BankMiddleware
    from scrubjay.agents.langchain.reader import MemoryReader as MemoryReader
    from scrubjay.agents.langchain.reader import NoteReading as NoteReading
    from scrubjay.agents.langchain.retriever import BankRetriever as BankRetriever
    from scrubjay.agents.langchain.store import BankStore as BankStore
    from scrubjay.agents.langchain.tools import memory_tools as memory_tools

# Lazy imports: each integration loads only the framework that it needs.
__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        ".embeddings.e5": ["E5Embeddings"],
        ".embeddings.minilm": ["MiniLMEmbeddings"],
        "checkpointer": ["Checkpointer"],
        "consolidation": ["ModelDecider"],
        "history": ["BankChatMessageHistory"],
        "middleware": ["BankMiddleware"],
        "reader": ["MemoryReader", "NoteReading"],
        "retriever": ["BankRetriever"],
        "store": ["BankStore"],
        "tools": ["memory_tools"],
    },
    extras={"langchain": "langgraph", "langgraph": "langgraph"},
)

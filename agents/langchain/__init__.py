"""The memory bank's faces towards LangChain and LangGraph.

LangChain's core is enough for the retriever, the history, the tools and the embeddings; the store, the checkpointer
and the middleware need the extra `langgraph`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scrubjay.agents.langchain.checkpointer import Checkpointer
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
    "MiniLMEmbeddings",
    "memory_tools",
]

_HOME_OF = {
    "BankChatMessageHistory": "history",
    "BankMiddleware": "middleware",
    "BankRetriever": "retriever",
    "BankStore": "store",
    "Checkpointer": "checkpointer",
    "MiniLMEmbeddings": "minilm",
    "memory_tools": "tools",
}
_NEEDED = ("langchain", "langgraph")


def __getattr__(name: str) -> Any:
    # On first use: each face loads only the framework that it needs.
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        raise ModuleNotFoundError(
            f"{name} needs {error.name}: pip install 'scrubjay[langgraph]'", name=error.name
        ) from error
    return getattr(home, name)

"""A memory bank as a retriever of LangChain: what it recalls, as documents."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables.config import run_in_executor

from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.file.record import Hit


class BankRetriever(BaseRetriever):
    """Finds records of a bank by words and by meaning, best first.

    `invoke(query, k=..., namespace=..., kinds=..., trusts=...)` overrides a field for once. A document's
    metadata has the record's id, score (comparable within one search), kind, namespace, trust, observed (ISO
    8601) and provenance. Raises what `MemoryBank.search` raises.
    """

    bank: MemoryBank
    """What is searched."""
    k: int = 4
    """Documents at most."""
    namespace: tuple[str, ...] | None = None
    """Whose memory, with all within it; None for everybody's."""
    kinds: tuple[str, ...] | None = None
    """Kinds of record; None for all."""
    trusts: tuple[str, ...] | None = None
    """Who may have said it: user, agent, tool; None for all."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **changed: Any
    ) -> list[Document]:
        return self._find(query, **changed)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **changed: Any
    ) -> list[Document]:
        return await run_in_executor(None, lambda: self._find(query, **changed))

    def _find(self, query: str, **changed: Any) -> list[Document]:
        asked = {name: getattr(self, name) for name in ("k", "namespace", "kinds", "trusts")} | changed
        return [_document(hit) for hit in self.bank.search(query, **asked)]


def _document(hit: Hit) -> Document:
    metadata = {
        "id": hit.id,
        "score": hit.score,
        "kind": hit.kind,
        "namespace": hit.namespace,
        "trust": hit.trust,
        "observed": hit.observed.isoformat(),
        "provenance": hit.provenance,
    }
    return Document(hit.text, id=hit.id, metadata=metadata)

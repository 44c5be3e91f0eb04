"""A memory bank as a retriever of LangChain: what it recalls, as documents."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import field_validator

from scrubjay.agents.language.namespaces import check_literal, check_template, fill
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
    """Whose memory, with all within it; None for everybody's.

    `("user", "{user_id}")` is filled from the call's config["configurable"] and LangGraph's context.
    """
    kinds: tuple[str, ...] | None = None
    """Kinds of record; None for all."""
    trusts: tuple[str, ...] | None = None
    """Who may have said it: user, agent, tool; None for all."""

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, namespace: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if namespace is None else check_template(namespace)

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Return the documents that a search finds, the best first."""
        return super().invoke(input, config, **self._with_namespace(config, kwargs))

    async def ainvoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents that a search finds, without blocking the event loop."""
        return await super().ainvoke(input, config, **self._with_namespace(config, kwargs))

    def _with_namespace(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call with its namespace, filled: a search knows no config."""
        if "namespace" in kwargs:
            namespace = kwargs["namespace"]
            return kwargs | {"namespace": None if namespace is None else check_literal(namespace)}
        return kwargs | {"namespace": None if self.namespace is None else fill(self.namespace, config)}

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

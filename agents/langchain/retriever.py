"""LangChain retriever over a memory bank."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, field_validator

from scrubjay.agents.language.namespaces import check_literal, check_template, fill_template
from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.record import Hit


class BankRetriever(BaseRetriever):
    """Retriever of a bank's records by keywords and embeddings, best first.

    `invoke(query, k=..., namespace=..., kinds=..., trusts=..., at=..., where=..., min_relevance=...)`
    overrides fields for one call. The metadata of a document contains the record's id, score, kind,
    namespace, trust, observed (ISO 8601), provenance, superseded_by and relevance. The relevance is None
    without `min_relevance`. Scores are comparable only within one search.

    Raises the errors of `MemoryBank.search`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    bank: MemoryBank
    """Memory bank to search."""
    k: int = 4
    """Maximum number of documents."""
    namespace: tuple[str, ...] | None = None
    """Namespace to search, including all namespaces below it; None for all namespaces.

    A template such as `("user", "{user_id}")` is filled from the call's config["configurable"] and
    LangGraph's context.
    """
    kinds: tuple[str, ...] | None = None
    """Kinds of record to search; None for all kinds."""
    trusts: tuple[str, ...] | None = None
    """Authors of the records to search: user, agent, tool; None for all authors."""
    at: Any = None
    """Time at which records must be valid, such as "2025-06-01"; None for now."""
    where: dict[str, Any] | None = None
    """Fields of the provenance with their values, such as `{"source": "manual.md"}`; None for all records."""
    min_relevance: float | None = None
    """Least relevance of a document, from 0 to 1; None for no limit."""

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, namespace: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if namespace is None else check_template(namespace)

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Return the matching documents, best first."""
        return super().invoke(input, config, **self._with_namespace(config, kwargs))

    async def ainvoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the matching documents, best first, without blocking the event loop."""
        return await super().ainvoke(input, config, **self._with_namespace(config, kwargs))

    def _with_namespace(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return a call's arguments with the namespace to search.

        A namespace in `kwargs` has priority and must not be a template. Otherwise the retriever's template is
        filled. The template is filled here, because the search does not get `config`.
        """
        if "namespace" in kwargs:
            namespace = kwargs["namespace"]
            return kwargs | {"namespace": None if namespace is None else check_literal(namespace)}
        return kwargs | {
            "namespace": None if self.namespace is None else fill_template(self.namespace, config)
        }

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        arguments = {
            name: getattr(self, name)
            for name in ("k", "namespace", "kinds", "trusts", "at", "where", "min_relevance")
        } | overrides
        return [_document(hit) for hit in self.bank.search(query, **arguments)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        return await run_in_executor(
            None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), **overrides
        )


def _document(hit: Hit) -> Document:
    metadata = {
        "id": hit.id,
        "score": hit.score,
        "kind": hit.kind,
        "namespace": hit.namespace,
        "trust": hit.trust,
        "observed": hit.observed.isoformat(),
        "provenance": hit.provenance,
        "superseded_by": hit.superseded_by,
        "relevance": hit.relevance,
    }
    return Document(hit.text, id=hit.id, metadata=metadata)

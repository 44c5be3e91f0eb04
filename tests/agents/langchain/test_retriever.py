"""LangChain's standard suite for retrievers, and the metadata of documents."""

from __future__ import annotations

import pytest
from langchain_tests.integration_tests import RetrieversIntegrationTests

from scrubjay.agents.langchain import BankRetriever
from scrubjay.memory import MemoryBank


@pytest.fixture(scope="module")
def bank():
    with MemoryBank(":memory:") as bank:
        bank.add("The scrub jay caches acorns.", kind="knowledge", namespace=("user", "ada"), url="a")
        bank.add("Acorns fall in October.", namespace=("user", "bob"))
        bank.add("A page says: acorns are free.", namespace=("user", "ada"), trust="tool", url="b")
        bank.add("Ada gathers acorns too.", namespace=("user", "ada", "work"), trust="agent")
        yield bank


class TestStandard(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _open(self, bank):
        self.bank = bank

    @property
    def retriever_constructor(self):
        return BankRetriever

    @property
    def retriever_constructor_params(self):
        return {"bank": self.bank}

    @property
    def retriever_query_example(self):
        return "acorns"


def test_fields_and_calls_choose_what_is_found(bank):
    retriever = BankRetriever(bank=bank, namespace=("user", "ada"), trusts=("user", "agent"))
    documents = retriever.invoke("Who caches acorns?")
    assert {document.metadata["namespace"] for document in documents} == {
        ("user", "ada"),
        ("user", "ada", "work"),
    }
    assert len(retriever.invoke("acorns", trusts=None)) == 3
    (only,) = retriever.invoke("acorns", kinds=("knowledge",))
    record = bank.get(only.id)
    assert (only.page_content, only.metadata["provenance"]) == (record.text, {"url": "a"})
    assert only.metadata["id"] == record.id
    assert only.metadata["observed"] == record.observed.isoformat()
    scores = [document.metadata["score"] for document in documents]
    assert scores == sorted(scores, reverse=True)


async def test_a_call_may_change_fields_on_the_event_loop_too(bank):
    assert len(await BankRetriever(bank=bank).ainvoke("acorns", k=2)) == 2
    with pytest.raises(ValueError, match="k=0"):
        await BankRetriever(bank=bank, k=0).ainvoke("acorns")


def test_a_time_selects_what_was_valid_then_and_unknown_fields_are_refused():
    with MemoryBank(":memory:") as bank:
        old = bank.add("Vera lives in Lisbon.", observed="2025-01-01")
        bank.add("Vera lives in Oslo.", observed="2025-09-01", supersedes=old)
        retriever = BankRetriever(bank=bank, at="2025-06-01")
        assert [each.page_content for each in retriever.invoke("Vera")] == ["Vera lives in Lisbon."]
        assert [each.page_content for each in retriever.invoke("Vera", at=None)] == ["Vera lives in Oslo."]
        with pytest.raises(ValueError, match="when"):
            BankRetriever(bank=bank, when="2025-06-01")  # type: ignore

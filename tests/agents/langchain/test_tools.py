"""LangChain's standard suites on all four tools, writes of a tainted agent, and namespace isolation."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from langchain_core.tools import tool
from langchain_tests.integration_tests import ToolsIntegrationTests

from scrubjay.agents.kwai import KwaiAgent
from scrubjay.agents.langchain import memory_tools
from scrubjay.agents.language.declarations import has_side_effect, is_trusted
from scrubjay.agents.language.text import taint_scope
from scrubjay.memory import MemoryBank

from ..kwai.scripted_model import ScriptedModel, call

ADA = ("user", "ada")


@pytest.fixture
def bank():
    with MemoryBank(":memory:") as bank:
        yield bank


@pytest.fixture
def tools(bank) -> dict[str, Any]:
    return {tool.name: tool for tool in memory_tools(bank, ADA)}


class _Standard(ToolsIntegrationTests):
    number: int

    @pytest.fixture(autouse=True)
    def _open(self, bank):
        self.bank = bank

    @property
    def tool_constructor(self) -> Any:
        return memory_tools(self.bank, ADA)[self.number]


class TestSearch(_Standard):
    number = 0

    @property
    def tool_invoke_params_example(self):
        return {"query": "acorns"}


class TestSave(_Standard):
    number = 1

    @property
    def tool_invoke_params_example(self):
        return {"text": "Ada gathers acorns."}


class TestUpdate(_Standard):
    number = 2

    @property
    def tool_invoke_params_example(self):
        return {
            "id": self.bank.add("A page: Ada lives in Bern.", namespace=ADA, trust="tool"),
            "text": "Ada lives in Basel.",
        }


class TestForget(_Standard):
    number = 3

    @property
    def tool_invoke_params_example(self):
        return {"id": self.bank.add("A page: Ada lives in Bern.", namespace=ADA, trust="tool")}


def run(tool, **arguments):
    return tool.invoke({"name": tool.name, "args": arguments, "id": "c", "type": "tool_call"})


def test_what_was_replaced_is_not_replaced_again(bank, tools):
    with taint_scope(False):
        saved_id = run(tools["save_memory"], text="Ada lives in Bern.").artifact["id"]
        run(tools["update_memory"], id=saved_id, text="Ada lives in Basel.")
        again = run(tools["update_memory"], id=saved_id, text="Ada lives in Rome.")
    assert again.status == "error"
    assert "is no longer valid. Take an id from search_memory" in again.text
    assert [hit.text for hit in bank.search("Where does Ada live?")] == ["Ada lives in Basel."]


def test_a_fact_is_saved_found_corrected_and_forgotten(bank, tools):
    with taint_scope(False):
        saved_id = run(tools["save_memory"], text="Ada lives in Bern.").artifact["id"]
        (record,) = run(tools["search_memory"], query="Where does Ada live?").artifact["records"]
        assert (record["id"], record["text"], record["trust"]) == (saved_id, "Ada lives in Bern.", "agent")
        updated_id = run(tools["update_memory"], id=saved_id, text="Ada lives in Basel.").artifact["id"]
        listing = run(tools["search_memory"], query="Where does Ada live?").text
        assert [json.loads(line)["text"] for line in listing.splitlines()] == ["Ada lives in Basel."]
        assert bank.get(updated_id).supersedes == saved_id
        assert bank.get(saved_id).valid_to is not None
        run(tools["forget_memory"], id=updated_id)
        assert bank.get(updated_id) is None
        assert "Nothing is remembered" in run(tools["search_memory"], query="Ada").text


def test_a_search_looks_back_to_a_date(bank, tools):
    old = bank.add("Ada lives in Bern.", namespace=ADA, observed="2025-01-01")
    bank.add("Ada lives in Basel.", namespace=ADA, observed="2025-06-01", supersedes=old)
    search = tools["search_memory"]
    for at, cities in (
        ("", ["Basel"]),
        ("2025-03-01", ["Bern"]),
        (" 2025-07-01 ", ["Basel"]),
        ("2024-01-01", []),
    ):
        records = run(search, query="Where does Ada live?", at=at).artifact["records"]
        assert [record["text"] for record in records] == [f"Ada lives in {city}." for city in cities]
    refusal = run(search, query="Ada", at="last spring")
    assert (refusal.status, "at='last spring': write a time as" in refusal.text) == ("error", True)


def test_after_text_from_outside_only_its_own_kind_can_be_changed(bank, tools):
    user_record_id = bank.add("Ada lives in Bern.", namespace=ADA)
    for scope in (taint_scope(True), contextlib.nullcontext()):  # tainted, or without a taint scope
        with scope:
            for name, arguments in (("update_memory", {"text": "Ada lives in Rome."}), ("forget_memory", {})):
                refusal = run(tools[name], id=user_record_id, **arguments)
                assert refusal.status == "error"
                assert "was not changed" in refusal.text
                assert "trust 'user'" in refusal.text
    saved_id = run(tools["save_memory"], text="A page says Ada lives in Rome.").artifact["id"]
    assert bank.get(saved_id).trust == "tool"
    updated_id = run(tools["update_memory"], id=saved_id, text="A page says Ada lives in Oslo.").artifact[
        "id"
    ]
    assert bank.get(updated_id).trust == "tool"
    assert bank.get(user_record_id).valid_to is None


def test_other_namespaces_cannot_be_reached(bank, tools):
    id = bank.add("Bob lives in Bonn.", namespace=("user", "bob"))
    with taint_scope(False):
        assert run(tools["search_memory"], query="Bob").artifact["records"] == []
        for name, arguments in (("update_memory", {"text": "x"}), ("forget_memory", {})):
            refusal = run(tools[name], id=id, **arguments)
            assert (refusal.status, "no memory" in refusal.text) == ("error", True)
    assert bank.get(id).valid_to is None


def test_metadata_is_what_an_agent_asks_for(bank, tools):
    assert {name: (has_side_effect(tool), is_trusted(tool)) for name, tool in tools.items()} == {
        "search_memory": (False, False),
        "save_memory": (True, True),
        "update_memory": (True, True),
        "forget_memory": (True, True),
    }
    search = memory_tools(bank, ADA, trusts=("user", "agent"))[0]
    assert is_trusted(search)
    bank.add("A page says hello.", namespace=ADA, trust="tool")
    assert run(search, query="hello").artifact["records"] == []


def test_what_cannot_be_is_said(bank, tools):
    with pytest.raises(ValueError, match="k=0"):
        memory_tools(bank, ADA, k=0)
    with pytest.raises(ValueError, match="trusts='nobody'"):
        memory_tools(bank, ADA, trusts=("nobody",))
    assert "nothing to remember" in run(tools["save_memory"], text=" ").text


@tool
def page() -> str:
    """Read a page."""
    return "Ada lives in Rome."


async def test_the_agent_tells_its_tools_what_was_read(bank):
    def agent(*replies, **options):
        tools = [page, *memory_tools(bank, ADA)]
        return KwaiAgent(ScriptedModel(replies=[*replies]), tools, **options)

    await agent(call("save_memory", text="Ada likes figs."), "ok", "Saved.").ainvoke("Remember figs.")
    agent(
        call("page"), call("save_memory", text="Ada lives in Rome."), "ok", "Saved.", approve=lambda _: True
    ).invoke("Read.")
    agent(call("page"), call("save_memory", text="Ada lives in Oslo."), "ok", "No.").invoke("Read.")
    assert [(r.text, r.trust) for r in bank.recent(9)] == [
        ("Ada likes figs.", "agent"),
        ("Ada lives in Rome.", "tool"),
    ]

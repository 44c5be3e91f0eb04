"""Declared properties of tools: only False counts as no, and a third party's metadata is ignored."""

import asyncio
from typing import Any

import pytest
from langchain_core.tools import StructuredTool
from langchain_core.tools import tool as langchain_tool
from pydantic import AnyUrl, BaseModel, HttpUrl

from scrubjay.agents import tool
from scrubjay.agents import tool as declare_tool
from scrubjay.agents.language.declarations import (
    THIRD_PARTY,
    address_arguments,
    has_side_effect,
    is_side_effect_declared,
    is_third_party,
    is_trusted,
    schema_addresses,
    sounds_like_an_address,
)


def make(metadata=None, schema=None):
    return StructuredTool(
        name="some", description="Some.", func=lambda **_: "", args_schema=schema or {}, metadata=metadata
    )


@pytest.mark.parametrize("value", [None, 0, "", "False", "no", [], True])
def test_only_false_says_that_a_tool_is_harmless(value):
    tool = make({"side_effect": value, "untrusted": value})
    assert has_side_effect(tool)
    assert not is_trusted(tool)
    assert is_side_effect_declared(tool) is (value is True)
    assert not has_side_effect(make({"side_effect": False}))
    assert is_trusted(make({"untrusted": False}))


def test_nothing_declared_is_dangerous():
    assert has_side_effect(make())
    assert not is_side_effect_declared(make())
    assert not is_trusted(make())


def make_mcp_tool(**metadata):
    """Return a tool like one of langchain-mcp-adapters: a coroutine of its module, the server's metadata."""

    async def call_tool(**arguments):
        return ""

    call_tool.__module__ = "langchain_mcp_adapters.tools"
    return StructuredTool(
        name="theirs", description="Theirs.", args_schema={}, coroutine=call_tool, metadata=metadata or None
    )


@pytest.mark.parametrize(
    "tool",
    [
        make_mcp_tool(side_effect=False, untrusted=False, addresses=[]),
        make({THIRD_PARTY: True, "side_effect": False, "untrusted": False, "addresses": []}),
        make_mcp_tool(side_effect=False, untrusted=False, scrubjay_declared={"untrusted": False}),
    ],
)
def test_what_a_server_says_of_its_tools_counts_for_nothing(tool):
    assert is_third_party(tool)
    assert has_side_effect(tool)
    assert not is_side_effect_declared(tool)
    assert not is_trusted(tool)
    assert address_arguments(tool) is None
    harmless = declare_tool(side_effect=False)(tool)
    assert is_third_party(harmless)
    assert not has_side_effect(harmless)
    assert not is_third_party(declare_tool(side_effect=False, untrusted=False)(tool))
    assert has_side_effect(tool)


class Place(BaseModel):
    at: AnyUrl


class Visit(BaseModel):
    first: HttpUrl
    rest: list[HttpUrl] | None = None
    place: Place | None = None
    note: str = ""


def test_types_and_formats_of_addresses_are_found_at_any_depth():
    assert schema_addresses(make(schema=Visit)) == {"first", "rest", "at"}
    schema = {
        "type": "object",
        "properties": {"where": {"$ref": "#/$defs/Where"}, "words": {"type": "string"}},
        "$defs": {"Where": {"anyOf": [{"type": "string", "format": "uri"}, {"$ref": "#/$defs/Where"}]}},
    }
    assert schema_addresses(make(schema=schema)) == {"where"}


@pytest.mark.parametrize("name", ["url", "URLs", "callbackURL", "base_uri", "imageurl", "hrefs", "hostName"])
def test_names_that_say_so_are_addresses(name):
    assert sounds_like_an_address(name)


@pytest.mark.parametrize("name", ["topic", "query", "text", "lineage", "blink", "start", ""])
def test_other_names_are_none(name):
    assert not sounds_like_an_address(name)


def test_names_that_are_no_list_are_refused():
    with pytest.raises(TypeError, match="addresses='url': must be a tuple"):
        address_arguments(make({"addresses": "url"}))


def double(n: int) -> int:
    """Double a number."""
    return 2 * n


async def later(n: int) -> int:
    """Double a number, later."""
    return 2 * n


@pytest.mark.parametrize(
    "function_or_tool", [double, later, langchain_tool(double)], ids=["plain", "async", "tool"]
)
def test_functions_and_tools_are_declared(function_or_tool):
    harmless = tool(side_effect=False, untrusted=False, addresses=("n",))(function_or_tool)
    assert asyncio.run(harmless.ainvoke({"n": 2})) == 4
    assert not has_side_effect(harmless)
    assert is_trusted(harmless)
    assert address_arguments(harmless) == {"n"}
    worse = tool()(function_or_tool)
    assert has_side_effect(worse)
    assert is_side_effect_declared(worse)
    assert not is_trusted(worse)
    assert address_arguments(worse) is None


def test_what_is_declared_of_a_copy_leaves_the_tool_and_its_metadata():
    plain_tool = langchain_tool(double)
    plain_tool.metadata = {"owner": "Ada"}
    assert (tool(side_effect=False)(plain_tool).metadata or {})["owner"] == "Ada"
    assert plain_tool.metadata == {"owner": "Ada"}


def test_it_stands_above_a_function():
    @tool(side_effect=False)
    def half(n: int) -> int:
        """Halve a number."""
        return n // 2

    assert half.invoke({"n": 4}) == 2
    assert not has_side_effect(half)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side_effect": None}, "side_effect=None: must be True or False"),
        ({"untrusted": "no"}, "untrusted='no': must be True or False"),
        ({"addresses": "url"}, r"addresses='url': must be a tuple of names, such as \('url',\)"),
    ],
)
def test_other_values_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        tool(**options)


def test_without_brackets_it_says_what_to_write():
    bare: Any = tool
    with pytest.raises(TypeError, match=r"write @tool\(side_effect=False\)"):
        bare(double)

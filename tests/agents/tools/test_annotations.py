"""The `tool` decorator and its declarations."""

import asyncio
from typing import Any

import pytest
from langchain_core.tools import tool as langchain_tool

from scrubjay.agents import tool
from scrubjay.agents.language.declarations import (
    address_arguments,
    has_side_effect,
    is_side_effect_declared,
    is_trusted,
)


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

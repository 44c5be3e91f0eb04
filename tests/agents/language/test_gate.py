"""Calls that need approval after untrusted text: a table of calls, and addresses nested in arguments."""

from __future__ import annotations

import pytest
from hypothesis import given as given_samples
from hypothesis import strategies as st
from langchain_core.tools import tool as langchain_tool

from scrubjay.agents import tool
from scrubjay.agents.language.address import AllowedAddresses
from scrubjay.agents.language.gate import Gate, collect_texts, find_objection

ALLOWED = AllowedAddresses(["open https://example.org/a and tell me"])


@tool(side_effect=False, addresses=("url",))
def visit(url: str, note: str = "") -> str:
    """Request a page from a server."""
    return url + note


@tool(side_effect=False, untrusted=False, addresses=())
def reckon(text: str) -> str:
    """Compute from the text alone."""
    return text


@tool(side_effect=True)
def send(text: str) -> str:
    """Change the outside world."""
    return text


@langchain_tool
def unknown(text: str) -> str:
    """Do something undeclared."""
    return text


@pytest.mark.parametrize(
    ("one", "arguments", "expected"),
    [
        (visit, {"url": "https://example.org/a"}, None),
        (visit, {"url": "HTTPS://EXAMPLE.org:443/a"}, None),
        (visit, {"url": "https://example.org/ab"}, "blocked_address"),
        (visit, {"url": "evil.example"}, "blocked_address"),
        (visit, {"url": "https://example.org/a", "note": "see //evil.example/x"}, "blocked_address"),
        (visit, {"url": "https://example.org/a", "note": "ratio 3:4, and/or"}, None),
        (reckon, {"text": "https://evil.example/"}, None),
        (send, {"text": "hello"}, "blocked"),
        (unknown, {"text": "hello"}, "blocked_undeclared"),
    ],
)
def test_what_a_call_needs_approval_for(one, arguments, expected):
    assert find_objection(one, Gate(one), arguments, lambda: ALLOWED) == expected


def test_what_was_said_is_looked_at_for_harmless_tools_alone():
    def never() -> AllowedAddresses:
        raise AssertionError("the history was searched for a call that is rejected anyway")

    assert find_objection(send, Gate(send), {"text": ""}, never) == "blocked"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def nested(value: object, way: list[str | None]) -> object:
    for name in way:
        value = [value] if name is None else {name: value}
    return value


@given_samples(value=JSON, way=st.lists(st.none() | st.text(max_size=6), max_size=6))
def test_no_nesting_hides_an_address(value, way):
    hidden = {"note": [value, nested("https://evil.example/4711", way)]}
    assert Gate(visit).has_disallowed_address(hidden, ALLOWED)


@given_samples(way=st.lists(st.none() | st.text("abc", min_size=1, max_size=6), max_size=6))
def test_what_lies_in_an_address_is_one(way):
    assert Gate(visit).has_disallowed_address({"url": nested("evil", way)}, ALLOWED)
    assert not Gate(visit).has_disallowed_address({"url": nested("https://example.org/a", way)}, ALLOWED)


def test_the_depth_is_the_models_choice_and_no_recursion():
    deep = nested("evil", [None] * 100_000)
    assert Gate(visit).has_disallowed_address({"url": deep}, ALLOWED)
    assert collect_texts(deep) == ["evil"]


@given_samples(value=JSON)
def test_texts_are_all_of_them_in_their_order(value):
    def expected_texts(part: object) -> list[str]:
        if isinstance(part, dict):
            return [text for name, item in part.items() for text in (name, *expected_texts(item))]
        if isinstance(part, list):
            return [text for item in part for text in expected_texts(item)]
        return [] if part is None else [str(part)]

    assert collect_texts(value) == expected_texts(value)

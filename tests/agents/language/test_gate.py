"""Which calls need approval once a stranger was heard: a table of calls, and what no nesting hides."""

from __future__ import annotations

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from langchain_core.tools import tool as undeclared

from scrubjay.agents import tool
from scrubjay.agents.language.address import Given
from scrubjay.agents.language.gate import Gate, objection, texts

SAID = Given(["open https://example.org/a and tell me"])


@tool(side_effect=False, addresses=("url",))
def visit(url: str, note: str = "") -> str:
    """Ask a server."""
    return url + note


@tool(side_effect=False, untrusted=False, addresses=())
def reckon(text: str) -> str:
    """Compute from the text alone."""
    return text


@tool(side_effect=True)
def send(text: str) -> str:
    """Change things."""
    return text


@undeclared
def unknown(text: str) -> str:
    """Of which nobody said anything."""
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
    assert objection(one, Gate(one), arguments, lambda: SAID) == expected


def test_what_was_said_is_looked_at_for_harmless_tools_alone():
    def never() -> Given:
        raise AssertionError("a history was searched for a call that is refused anyway")

    assert objection(send, Gate(send), {"text": ""}, never) == "blocked"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def nested(value: object, way: list[str | None]) -> object:
    for name in way:
        value = [value] if name is None else {name: value}
    return value


@drawn(around=JSON, way=st.lists(st.none() | st.text(max_size=6), max_size=6))
def test_no_nesting_hides_an_address(around, way):
    hidden = {"note": [around, nested("https://evil.example/4711", way)]}
    assert Gate(visit).has_ungiven(hidden, SAID)


@drawn(way=st.lists(st.none() | st.text("abc", min_size=1, max_size=6), max_size=6))
def test_what_lies_in_an_address_is_one(way):
    assert Gate(visit).has_ungiven({"url": nested("evil", way)}, SAID)
    assert not Gate(visit).has_ungiven({"url": nested("https://example.org/a", way)}, SAID)


def test_the_depth_is_the_models_choice_and_no_recursion():
    deep = nested("evil", [None] * 100_000)
    assert Gate(visit).has_ungiven({"url": deep}, SAID)
    assert texts(deep) == ["evil"]


@drawn(value=JSON)
def test_texts_are_all_of_them_in_their_order(value):
    def told(part: object) -> list[str]:
        if isinstance(part, dict):
            return [text for name, item in part.items() for text in (name, *told(item))]
        if isinstance(part, list):
            return [text for item in part for text in told(item)]
        return [] if part is None else [str(part)]

    assert texts(value) == told(value)

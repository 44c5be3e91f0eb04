"""What a call may do once text from outside was read: change nothing, and go where somebody said."""

import pytest
from langchain_core.tools import StructuredTool

from scrubjay.agents import tool
from scrubjay.agents.language.address import Given
from scrubjay.agents.language.gate import Gate, objection, texts

FARM = "https://farm.example/report"


def fetching(**declared):
    made = StructuredTool(name="fetch", description="Fetch.", func=lambda **_: "", args_schema={})
    return tool(**declared)(made) if declared else made


def judged(one, arguments, said=f"Read {FARM}"):
    return objection(one, Gate(one), arguments, lambda: Given([said]))


@pytest.mark.parametrize(
    ("declared", "why"),
    [({}, "blocked_undeclared"), ({"side_effect": True}, "blocked"), ({"side_effect": False}, None)],
)
def test_what_is_not_declared_harmless_is_objected_to(declared, why):
    assert judged(fetching(**declared), {"url": FARM}) == why


@pytest.mark.parametrize(
    "url", ["https://evil.example/", f"{FARM}/4711", "evil.example", 2130706433, [FARM, "x"]]
)
def test_so_is_an_address_that_nobody_gave(url):
    one = fetching(side_effect=False)
    assert judged(one, {"url": url}) == "blocked_address"
    assert judged(one, {"deep": [{"url": url}]}) == "blocked_address"


def test_who_changes_things_is_not_asked_where():
    """What was given is worked out only where it counts."""
    one = fetching(side_effect=True)
    assert objection(one, Gate(one), {"url": FARM}, lambda: pytest.fail("asked")) == "blocked"


def test_texts_are_all_that_is_told_in_its_order():
    assert texts({"a": ["b", {"c": 1}], "d": None}) == ["a", "b", "c", "1", "d"]

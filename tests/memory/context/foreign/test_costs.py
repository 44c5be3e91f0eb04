"""No operation of a template writes more than it costs."""

import json
import operator
from typing import Any

import pytest

from scrubjay.memory.context.foreign.costs import (
    FILTERS,
    compare_cost,
    format_cost,
    method_cost,
    operator_cost,
)
from scrubjay.memory.context.foreign.meter import TemplateLimitError, metering

TEXTS = ["", "a", "aaaa", "a b\na\tb\n", "é" * 40]


@pytest.fixture(autouse=True)
def _meter():
    with metering(10**6):
        yield


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("replace", ("a", "bcd" * 9)),
        ("replace", ("", "bcd" * 9)),
        ("center", (90,)),
        ("ljust", (90, "x")),
        ("zfill", (90,)),
        ("expandtabs", (90,)),
        ("join", (["a", "b", "c"],)),
        ("join", ("abcdef",)),
        ("split", ()),
        ("split", ("a",)),
        ("rsplit", (" ",)),
        ("partition", ("a",)),
        ("splitlines", ()),
        ("upper", ()),
        ("strip", ("ab",)),
    ],
)
def test_a_method_writes_no_more_than_it_costs(text, name, arguments):
    cost = method_cost(text, name)
    assert cost is not None
    result = getattr(text, name)(*arguments)
    assert cost(text, *arguments) >= len(result if isinstance(result, str) else "".join(result))


@pytest.mark.parametrize("value", ["a", [1, 2], "é\n" * 20, {"a": ["b", {"c": 1}]}])
def test_json_is_no_longer_than_it_costs(value):
    for indent in (None, 2, 50):
        assert 8 + 2 * FILTERS["tojson"](value, indent=indent) >= len(
            json.dumps(value, ensure_ascii=False, indent=indent)
        )


def test_a_format_writes_no_more_than_it_costs():
    for text, values in (
        ("%s %s", ("a" * 99, "b")),
        ("{0}{0}{0}{1:>900}", ("a" * 99, "b")),
        ("%r", ("\U000e0000",)),
    ):
        result = text % values if "%" in text else text.format(*values)
        assert format_cost(text, *values) >= len(result)


@pytest.mark.parametrize("text", ["%1000d", "%*d", "{:1000}", "{:{}}", "{:.{x}}", "%.9999f"])
def test_a_format_of_unknown_width_is_refused(text):
    with pytest.raises(TemplateLimitError):
        format_cost(text, 1)


def test_operators_cost_what_they_write():
    cases: Any = (("+", "ab", "cd"), ("*", "ab", 7), ("*", 3, [1, 2]), ("+", [1], [2]))
    for name, left, right in cases:
        result = operator.add(left, right) if name == "+" else operator.mul(left, right)
        assert operator_cost(name, left, right) >= len(result)
    assert operator_cost("*", "ab", -7) == 0
    assert operator_cost("+", 1, 2) == 0
    with pytest.raises(TemplateLimitError, match="bits"):
        operator_cost("**", 10, 10**6)


def test_comparisons_cost_what_they_read():
    assert compare_cost("a", "in", "b" * 99) >= 99
    assert compare_cost("a" * 50, "in", ["b" * 50] * 9) >= 450
    assert compare_cost([1] * 9, "eq", [1] * 9) >= 9
    assert compare_cost(("a" * 50,), "in", {}) >= 50
    assert compare_cost(1, "eq", "a" * 99) == 0


def test_methods_of_other_values_have_no_cost():
    for owner, name in (([], "append"), (1, "to_bytes"), ("", "translate"), ("", "encode"), (object(), "x")):
        assert method_cost(owner, name) is None

"""Units that the filters, tests, methods and operators of a chat template read or write, by name.

What has no entry here cannot be used in a template.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.runtime import Undefined

from scrubjay.memory.context.foreign.meter import MAX_BITS, NODE, TemplateLimitError, measure, size, width

MAX_WIDTH = 1000
"""Columns or digits to which a template may pad a text."""
_MAX_SLOW = 10_000  # units of the input of filters that may take quadratic time
_SLOW = 64  # such a filter costs this many times its input
_REPR = 10  # characters of a character's longest escape, such as \U0001f600

Cost = Callable[..., int]
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda item, container: item in container,
    "notin": lambda item, container: item not in container,
}


def _free(*values: Any, **options: Any) -> int:
    return 0


def _shallow(*values: Any, **options: Any) -> int:
    # The elements of a text become texts of one character.
    return sum(NODE * len(value) if isinstance(value, str) else width(value) for value in values[:1])


def _deep(*values: Any, **options: Any) -> int:
    return size(*values, *options.values())


def _key(mapping: Any, *values: Any, **options: Any) -> int:
    return size(*values, *options.values())  # a tuple is hashed with all its contents


def _sorting(*values: Any, **options: Any) -> int:
    return 20 * _deep(*values, **options)


def _product(*values: Any, **options: Any) -> int:
    """Return the units of methods that compare each position of a text with all of another text."""
    return size(values[0]) * (1 + _deep(*values[1:], **options))


def _padded(*values: Any, **options: Any) -> int:
    """Return the units of functions that pad each line, or each tab, to a width."""
    widths = [value for value in (*values[1:], *options.values()) if type(value) is int]
    if any(abs(value) > MAX_WIDTH for value in widths):
        raise TemplateLimitError(f"it pads a text to more than {MAX_WIDTH} columns")
    text = values[0]
    lines = text.count("\n") + text.count("\t") + 1 if isinstance(text, str) else 1
    texts = [value for value in (*values[1:], *options.values()) if type(value) is not int]
    return size(text) + lines * (sum(map(abs, widths)) + size(*texts) + NODE)


def _slow(*values: Any, **options: Any) -> int:
    units = _padded(*values, **options)
    if units > _MAX_SLOW:
        raise TemplateLimitError(f"it uses a slow filter on more than {_MAX_SLOW:,} characters")
    return _SLOW * units


def _split(text: str, separator: Any = None, *rest: Any, **options: Any) -> int:
    separator = options.get("sep", separator)
    parts = text.count(separator) if isinstance(separator, str) and separator else len(text) // 2
    return len(text) + 4 * NODE * parts + size(separator)


def _split_from_right(text: str, separator: Any = None, *rest: Any, **options: Any) -> int:
    return _split(text, separator, **options) + _product(text, separator, **options)


def _replace(text: Any, old: Any = "", new: Any = "", *rest: Any, **options: Any) -> int:
    old, new = options.get("old", old), options.get("new", new)
    units = size(text, old, new)
    text, old, new = str(text), str(old), str(new)
    return units + text.count(old) * len(new)


def _join(values: Any, separator: Any = "", *rest: Any, **options: Any) -> int:
    separator = options.get("d", separator)
    count = len(values) if hasattr(values, "__len__") else 1
    return size(values, *rest, *options.values()) + count * size(separator)


def _join_method(separator: str, values: Any = ()) -> int:
    return _join(values, separator)


def _sum(values: Any, attribute: Any = None, start: Any = 0, **options: Any) -> int:
    start = options.get("start", start)
    count = len(values) if hasattr(values, "__len__") else 1
    return width(values) if isinstance(start, int | float) else count * size(values, start)


def _to_json(value: Any, *rest: Any, **options: Any) -> int:
    units, depth = measure(value)
    indent = options.get("indent", rest[1] if len(rest) > 1 else None)
    step = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
    if step > MAX_WIDTH:
        raise TemplateLimitError(f"it indents JSON by more than {MAX_WIDTH} columns")
    separators = size(*rest, *options.values())
    return units * (1 + depth * step // NODE) + units // NODE * separators


def format_cost(text: str, *values: Any, **options: Any) -> int:
    """Return the units of `text.format(...)`, `text % value` and the filter `format`.

    Raises TemplateLimitError if the text asks for a huge width, or takes a width from a value.
    """
    plain = text.replace("{{", "").replace("%%", "")
    if re.search(r"\d{4}", plain) or re.search(r"\{[^{}]*\{|%[^a-zA-Z%]{0,100}\*", plain):
        raise TemplateLimitError(f"it formats a text with a width that is above {MAX_WIDTH} or a value")
    places = plain.count("{") + plain.count("%")
    return len(text) + places * (MAX_WIDTH + _REPR * _deep(*values, **options))


def _with_names(table: Mapping[str, Cost]) -> dict[str, Cost]:
    return {name: cost for names, cost in table.items() for name in names.split()}


FILTERS = _with_names(
    {
        "abs attr count d default first last length random": _free,
        "items list map reject rejectattr reverse select selectattr": _shallow,
        "capitalize e escape float forceescape int lower safe string title truncate upper": _deep,
        "urlencode wordcount": _deep,
        "dictsort groupby max min sort unique": _sorting,
        "trim": _product,
        "center indent round": _padded,
        "batch filesizeformat pprint slice striptags urlize wordwrap xmlattr": _slow,
        "format": format_cost,
        "join": _join,
        "replace": _replace,
        "sum": _sum,
        "tojson": _to_json,
    }
)
TESTS = _with_names(
    {
        "boolean callable defined divisibleby escaped even false filter float integer iterable mapping none "
        "number odd sameas sequence string test true undefined": _free,
        "== != < <= > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper": _deep,
    }
)
_TEXT_METHODS = _with_names(
    {
        "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit "
        "isidentifier islower isnumeric isprintable isspace istitle isupper lower partition removeprefix "
        "removesuffix splitlines startswith swapcase title upper": _deep,
        "lstrip rfind rindex rpartition rstrip strip": _product,
        "center expandtabs ljust rjust zfill": _padded,
        "split": _split,
        "rsplit": _split_from_right,
        "replace": _replace,
        "join": _join_method,
    }
)
_TEXT_METHODS["splitlines"] = _shallow
_METHODS: dict[type, dict[str, Cost]] = {
    str: _TEXT_METHODS,
    dict: _with_names({"get": _key, "items keys values": _free, "copy": _shallow}),
    list: _with_names({"count index": _deep, "copy": _shallow}),
    tuple: _with_names({"count index": _deep}),
    range: _with_names({"count index": _shallow}),
    int: _with_names({"bit_length is_integer": _free}),
    float: _with_names({"is_integer": _free}),
}


def method_cost(owner: Any, name: str) -> Cost | None:
    """Return the cost function of a method of a plain value; None if templates may not call the method."""
    return next((table.get(name) for kind, table in _METHODS.items() if isinstance(owner, kind)), None)


def compare_cost(left: Any, name: str, right: Any) -> int:
    """Return the units of a comparison."""
    if name not in ("in", "notin"):
        if isinstance(left, str) and isinstance(right, str):
            return min(len(left), len(right))
        are_containers = all(isinstance(value, (list, tuple, dict)) for value in (left, right))
        return size(left, right) if are_containers else 0
    if isinstance(right, str):
        return len(right) + width(left)
    if isinstance(right, dict):
        return size(left)
    return width(right) // NODE * (NODE + size(left)) if isinstance(left, str) else size(left, right)


def operator_cost(name: str, left: Any, right: Any) -> int:
    """Return the units of a binary operator. Raises TemplateLimitError if a number would be huge."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if name == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_BITS:
            raise TemplateLimitError(f"it computes a number of more than {MAX_BITS} bits")
        return 0
    if name == "%" and isinstance(left, str):
        return format_cost(left, right)
    if name == "*":
        count = left if isinstance(left, int) else right if isinstance(right, int) else 1
        return max(count, 0) * (width(left) + width(right))
    return 0 if isinstance(left, Undefined) else width(left) + width(right)

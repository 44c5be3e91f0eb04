"""The calculator compared with Python's arithmetic, and on invalid and malicious expressions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.tools import make_tools
from scrubjay.agents.tools.calculator import FUNCTIONS, MAX_BITS, calculate

pytestmark = pytest.mark.requires("simpleeval")

NUMBERS = st.integers(-1000, 1000) | st.floats(-1e6, 1e6).map(lambda number: float(f"{number:.6f}"))
EXPRESSIONS = st.recursive(
    NUMBERS.map(lambda number: f"({number})"),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/%"), inner).map(lambda parts: f"({''.join(parts)})"),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_arithmetic_is_that_of_python(expression):
    try:
        expected = eval(expression)
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="divides by zero"):
            calculate(expression)
    else:
        assert calculate(expression) == expected


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2^3+1", 9),
        ("2**9999", 2**9999),
        ("-2**2", -4),
        ("7 // 2 + 7 % 2", 4),
        ("（1＋2）×3÷4=", 2.25),
        ("5 − 3", 2),
        ("√(16) + π - pi", 4),
        ("1e3", 1000),
        ("3 > 2", True),
        ("1 < 2 < 3", True),
        ("factorial(20) / comb(20, 3)", math.factorial(20) / 1140),
        ("round(2.567, 2) + round(1234, -2)", 1202.57),
        ("max(1, 2, min(3, 4)) + gcd(12, 18)", 9),
    ],
)
def test_expressions_as_people_write_them(expression, value):
    assert calculate(expression) == (pytest.approx(value, rel=1e-15) if isinstance(value, float) else value)


def test_a_sum_of_tenths_is_shown_as_people_expect():
    (tool,) = make_tools(["calculator"])
    assert tool.invoke({"expression": "0.1 + 0.2"}) == "0.1 + 0.2 = 0.3"
    assert tool.invoke({"expression": "2**70"}) == f"2**70 = {2**70}"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("9**9**9**9", "too large"),
        ("9^999^999", "too large"),
        ("2**99999", "too large"),
        ("factorial(10**6)", "from 0 to 1000"),
        ("factorial(1000)**9", "too large|bits"),
        ("*".join(["factorial(999)"] * 9), "bits"),
        ("round(5, -10**9)", "digits"),
        ("exp(1000)", "too large"),
        ("10.0**400", "too large"),
        ("1e999", "finite"),
        ("(-8)**(1/3)", "real number"),
        ("sqrt(-1)", "domain"),
        ("1/0", "divides by zero"),
        ("1" + "+1" * 300, "at most 500"),
        ("(" * 250 + "1" + ")" * 249, "not an expression"),
        ("'a' * 9999999", "not a str"),
        ("f'{1:999999999}'", "not a joinedstr"),
        ("[1] * 9999999", "not a list"),
        ("(1).__class__", "not a attribute"),
        ("__import__('os').system('true')", "not"),
        ("open('/etc/passwd').read()", "not"),
        ("(lambda: 1)()", "not a lambda"),
        ("[x for x in (1, 2)]", "not a listcomp"),
        ("1 if 1 else 2", "not a ifexp"),
        ("max(1, key=abs)", "not a keyword"),
        ("max(*(1, 2))", "not a starred"),
        ("x + 1", "'x' is not defined"),
        ("foo(1)", "not defined"),
        ("abs", "real number"),
        ("1,234 * 2", "without separators"),
        ("15% of 80", "15% as 0.15"),
        ("3²", "not an expression"),
        ("2½", "not an expression"),
        ("1j", "not a complex"),
        ("True + 1", "not a bool"),
        ("comb(-1, 2)", "from 0 to 1000"),
        ("sqrt(1, 2)", "argument"),
        ("", "not an expression"),
        ("\0", "not an expression"),
        ("a = 1", "not an expression"),
    ],
)
def test_what_cannot_be_calculated_is_explained(expression, message):
    with pytest.raises(ValueError, match=message):
        calculate(expression)


@given(st.text(st.sampled_from("0123456789.+-*/^%()<>=, eπ√×'[]{}_x\n\0²½，（"), max_size=40))
def test_any_text_gives_a_number_or_an_explanation(text):
    try:
        value = calculate(text)
    except ValueError:
        return
    assert isinstance(value, int) or math.isfinite(value)


@given(st.sampled_from(sorted(FUNCTIONS)), st.lists(NUMBERS | st.just(10**3000), max_size=3))
def test_every_function_gives_a_number_or_an_explanation(name, arguments):
    expression = f"{name}({', '.join(map(str, arguments))})".replace(str(10**3000), "10**3000")
    try:
        value = calculate(expression)
    except ValueError:
        return
    assert not isinstance(value, int) or value.bit_length() <= MAX_BITS

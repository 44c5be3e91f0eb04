"""Exact arithmetic on expressions, with limits on how large anything may grow."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from scrubjay.agents.language.prompts import Phrase
from scrubjay.agents.tools.base import Answer, Mistaken
from scrubjay.agents.tools.spec import Argument, Around, Bilingual, ToolSpec

MOST_CHARACTERS = 500
MOST_BITS = 10_000
"""Of any whole number on the way."""
MOST_COUNT = 1000
"""The largest argument of factorial, comb and perm."""

_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
# Full-width signs are made plain; raised digits and fractions are not, lest 3² be read as 32.
_WRITTEN = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | {"×": "*", "÷": "/", "−": "-", "–": "-", "π": "pi", "√": "sqrt", "^": "**", "\u3000": " "}
)
_ALLOWED = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Load)


def calculate(expression: str) -> int | float | bool:
    """Return the value of an expression. Raises Mistaken, a ValueError that says what is wrong with it.

    Knows numbers, `+ - * / // % ** ^` (a power), comparisons, `pi`, `e`, `tau` and the functions of
    `FUNCTIONS`; whole numbers are exact.
    """
    if len(expression) > MOST_CHARACTERS:
        raise Mistaken("sum_long", characters=len(expression), most=MOST_CHARACTERS)
    from simpleeval import InvalidExpression, SimpleEval

    written = expression.translate(_WRITTEN).strip().rstrip("=").strip()
    evaluator = SimpleEval(operators=_OPERATORS, functions=FUNCTIONS, names=_CONSTANTS)
    try:
        tree = ast.parse(written, mode="eval")
        for node in ast.walk(tree):
            _check(node)
        value = evaluator.eval(written, previously_parsed=tree.body)
    except ZeroDivisionError:
        raise Mistaken("sum_zero", expression=repr(expression)) from None
    except SyntaxError:
        hint = Phrase("sum_hint_signs") if {",", "%"} & set(written) else ""
        raise Mistaken("sum_form", expression=repr(expression), hint=hint) from None
    except (RecursionError, MemoryError):
        raise Mistaken("sum_deep") from None
    except OverflowError:
        raise Mistaken("sum_overflow", expression=repr(expression)) from None
    except Mistaken:
        raise
    except ValueError as error:  # of a function, on a value that it is not defined for
        raise Mistaken("sum_undefined", error=error) from None
    except (InvalidExpression, TypeError) as error:
        known = ", ".join(sorted(FUNCTIONS))
        raise Mistaken("sum_unknown", expression=repr(expression), error=error, known=known) from None
    return _number(value)


def _check(node: ast.AST) -> None:
    """Raise Mistaken on what is no arithmetic: texts, lists, attributes, conditions."""
    number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    if not number and not isinstance(node, (*_ALLOWED, *_OPERATORS)):
        hint = Phrase("sum_hint_separators") if isinstance(node, ast.Tuple) else ""
        what = type(node.value if isinstance(node, ast.Constant) else node).__name__.lower()
        raise Mistaken("sum_kind", kind=what, hint=hint)


def _number(value: Any) -> Any:
    """Return a value that is a real number within the limits. Raises Mistaken otherwise."""
    if not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise Mistaken("sum_not_real")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise Mistaken("sum_bits", most=MOST_BITS)
    return value


def _power(base: Any, exponent: Any) -> Any:
    base, exponent = _number(base), _number(exponent)
    both_whole = isinstance(base, int) and isinstance(exponent, int)
    if both_whole and abs(base) > 1 and abs(exponent) * (abs(base).bit_length() - 1) > MOST_BITS:
        shown = base if abs(base) < 10**20 else Phrase("sum_the_number")
        raise Mistaken("sum_power", base=shown, exponent=exponent)
    return base**exponent


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function on real numbers within the limits, and its result within them."""

    def call(*arguments: Any) -> Any:
        return _number(function(*map(_number, arguments)))

    return call


def _round(value: Any, digits: int = 0) -> Any:
    if not isinstance(digits, int) or abs(digits) > 100:
        raise Mistaken("sum_digits", digits=digits)
    return round(value, digits) if digits else round(value)


def _counting(function: Callable[..., int]) -> Callable[..., int]:
    def call(*arguments: Any) -> int:
        for argument in arguments:
            if not isinstance(argument, int) or not 0 <= argument <= MOST_COUNT:
                raise Mistaken("sum_counting", function=function.__name__, most=MOST_COUNT, argument=argument)
        return function(*arguments)

    return call


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    kind: _guarded(function)
    for kind, function in {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: _power,
        ast.UAdd: operator.pos,
        ast.USub: operator.neg,
        ast.Eq: operator.eq,
        ast.NotEq: operator.ne,
        ast.Lt: operator.lt,
        ast.LtE: operator.le,
        ast.Gt: operator.gt,
        ast.GtE: operator.ge,
    }.items()
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: _guarded(function)
    for name, function in {
        "abs": abs,
        "acos": math.acos,
        "asin": math.asin,
        "atan": math.atan,
        "atan2": math.atan2,
        "ceil": math.ceil,
        "comb": _counting(math.comb),
        "cos": math.cos,
        "degrees": math.degrees,
        "exp": math.exp,
        "factorial": _counting(math.factorial),
        "floor": math.floor,
        "gcd": math.gcd,
        "hypot": math.hypot,
        "lcm": math.lcm,
        "ln": math.log,
        "log": math.log,
        "log10": math.log10,
        "log2": math.log2,
        "max": max,
        "min": min,
        "perm": _counting(math.perm),
        "pow": _power,
        "radians": math.radians,
        "round": _round,
        "sin": math.sin,
        "sqrt": math.sqrt,
        "tan": math.tan,
    }.items()
}


def _run(around: Around, expression: str) -> Answer:
    value = calculate(expression)
    # Fifteen digits are what a double holds: 0.1 + 0.2 is 0.3 then.
    shown = f"{value:.15g}" if isinstance(value, float) else str(value)
    return Answer(f"{expression.strip()} = {shown}", data=value)


CALCULATOR = ToolSpec(
    name="calculator",
    zh_name="计算器",
    about=Bilingual(
        "Calculate an arithmetic expression exactly, such as (3 + 4) * 2**10 or sqrt(2) * 1.5; "
        "functions as in Python's math.",
        "准确计算算术表达式，例如 (3 + 4) * 2**10 或 sqrt(2) * 1.5；函数同 Python 的 math。",
    ),
    arguments=(Argument("expression", str, Bilingual("the expression", "算术表达式")),),
    run=_run,
    side_effect=False,
    packages=("simpleeval",),
)

"""Exact arithmetic on expressions, with limits on the size of intermediate values."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from scrubjay.agents.language.prompts import Phrase
from scrubjay.agents.tools.base import ToolArgumentError, ToolResult
from scrubjay.agents.tools.spec import ToolContext, ToolSpec

MAX_CHARACTERS = 500
MAX_BITS = 10_000
"""Maximum bits of an intermediate integer."""
MAX_COUNT = 1000
"""Maximum argument of factorial, comb and perm."""

_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
# Full-width signs become ASCII; superscript digits and fractions are left alone, so 3² is not read as 32.
_NORMALIZATION = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | {"×": "*", "÷": "/", "−": "-", "–": "-", "π": "pi", "√": "sqrt", "^": "**", "\u3000": " "}
)
_ALLOWED = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Load)


def calculate(expression: str) -> int | float | bool:
    """Return the value of an expression. An invalid expression raises ToolArgumentError, a ValueError.

    An expression may contain numbers, `+ - * / // % ** ^` (`^` is a power), comparisons, `pi`, `e`, `tau` and
    the functions of `FUNCTIONS`. Integers are exact.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ToolArgumentError("sum_long", characters=len(expression), most=MAX_CHARACTERS)
    from simpleeval import InvalidExpression, SimpleEval

    normalized_expression = expression.translate(_NORMALIZATION).strip().rstrip("=").strip()
    evaluator = SimpleEval(operators=_OPERATORS, functions=FUNCTIONS, names=_CONSTANTS)
    try:
        tree = ast.parse(normalized_expression, mode="eval")
        for node in ast.walk(tree):
            _check(node)
        value = evaluator.eval(normalized_expression, previously_parsed=tree.body)
    except ZeroDivisionError:
        raise ToolArgumentError("sum_zero", expression=repr(expression)) from None
    except SyntaxError:
        hint = Phrase("sum_hint_signs") if {",", "%"} & set(normalized_expression) else ""
        raise ToolArgumentError("sum_form", expression=repr(expression), hint=hint) from None
    except (RecursionError, MemoryError):
        raise ToolArgumentError("sum_deep") from None
    except OverflowError:
        raise ToolArgumentError("sum_overflow", expression=repr(expression)) from None
    except ToolArgumentError:
        raise
    except ValueError as error:  # a function is not defined for a value
        raise ToolArgumentError("sum_undefined", error=error) from None
    except (InvalidExpression, TypeError) as error:
        names = ", ".join(sorted(FUNCTIONS))
        raise ToolArgumentError(
            "sum_unknown", expression=repr(expression), error=error, known=names
        ) from None
    return _number(value)


def _check(node: ast.AST) -> None:
    """Raise ToolArgumentError if a node is not arithmetic, such as a string, list, attribute or condition."""
    number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    if not number and not isinstance(node, (*_ALLOWED, *_OPERATORS)):
        hint = Phrase("sum_hint_separators") if isinstance(node, ast.Tuple) else ""
        what = type(node.value if isinstance(node, ast.Constant) else node).__name__.lower()
        raise ToolArgumentError("sum_kind", kind=what, hint=hint)


def _number(value: Any) -> Any:
    """Return the value. Raises ToolArgumentError unless it is a finite real number within the limits."""
    if not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ToolArgumentError("sum_not_real")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ToolArgumentError("sum_bits", most=MAX_BITS)
    return value


def _power(base: Any, exponent: Any) -> Any:
    base, exponent = _number(base), _number(exponent)
    both_whole = isinstance(base, int) and isinstance(exponent, int)
    if both_whole and abs(base) > 1 and abs(exponent) * (abs(base).bit_length() - 1) > MAX_BITS:
        displayed_base = base if abs(base) < 10**20 else Phrase("sum_the_number")
        raise ToolArgumentError("sum_power", base=displayed_base, exponent=exponent)
    return base**exponent


def _check_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `function`; the wrapper checks that arguments and result are real numbers within the limits."""

    def call(*arguments: Any) -> Any:
        return _number(function(*map(_number, arguments)))

    return call


def _round(value: Any, digits: int = 0) -> Any:
    if not isinstance(digits, int) or abs(digits) > 100:
        raise ToolArgumentError("sum_digits", digits=digits)
    return round(value, digits) if digits else round(value)


def _check_counts(function: Callable[..., int]) -> Callable[..., int]:
    def call(*arguments: Any) -> int:
        for argument in arguments:
            if not isinstance(argument, int) or not 0 <= argument <= MAX_COUNT:
                raise ToolArgumentError(
                    "sum_counting", function=function.__name__, most=MAX_COUNT, argument=argument
                )
        return function(*arguments)

    return call


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    kind: _check_values(function)
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
    name: _check_values(function)
    for name, function in {
        **{
            function.__name__: function
            for function in (
                abs,
                math.acos,
                math.asin,
                math.atan,
                math.atan2,
                math.ceil,
                math.cos,
                math.degrees,
                math.exp,
                math.floor,
                math.gcd,
                math.hypot,
                math.lcm,
                math.log,
                math.log10,
                math.log2,
                max,
                min,
                math.radians,
                math.sin,
                math.sqrt,
                math.tan,
            )
        },
        **{function.__name__: _check_counts(function) for function in (math.comb, math.factorial, math.perm)},
        "ln": math.log,
        "pow": _power,
        "round": _round,
    }.items()
}


def _run(context: ToolContext, expression: str) -> ToolResult:
    value = calculate(expression)
    # A double holds 15 significant digits: with these, 0.1 + 0.2 prints as 0.3.
    result = f"{value:.15g}" if isinstance(value, float) else str(value)
    return ToolResult(f"{expression.strip()} = {result}", data=value)


CALCULATOR = ToolSpec(
    name="calculator",
    zh_name="计算器",
    description=(
        (
            "Calculate an arithmetic expression exactly, such as (3 + 4) * 2**10 or sqrt(2) * 1.5; "
            "functions as in Python's math."
        ),
        "准确计算算术表达式，例如 (3 + 4) * 2**10 或 sqrt(2) * 1.5；函数同 Python 的 math。",
    ),
    arguments={
        "expression": ("the expression", "算术表达式"),
    },
    run=_run,
    side_effect=False,
    packages=("simpleeval",),
)

"""Render chat templates of anybody's model: within a number of steps, and without access to Python objects.

A template is a program. Jinja's sandbox keeps it from Python's internals, but not from endless loops and
huge texts. Here each operation of a template is paid for before it runs (`meter`, `costs`), and the whole
rendering has a number of steps that grows with the conversation. Templates get the same functions as in
transformers.
"""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import (
    BlockReference,
    LoopContext,
    Macro,
    Undefined,
    markup_join,
    str_join,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, _PassArg, pass_context, pass_eval_context
from jinja2.visitor import NodeTransformer

from scrubjay.memory.context.foreign.costs import (
    COMPARISONS,
    FILTERS,
    TESTS,
    compare_cost,
    format_cost,
    method_cost,
    operator_cost,
)
from scrubjay.memory.context.foreign.meter import NODE, TemplateLimitError, metering, size, spend, width

MAX_TEMPLATE = 65_536
"""Characters of a template. Those of current models have up to about 20,000."""
MAX_NODES = 10_000
"""Nodes of a template's syntax tree: about a second of compilation. Current templates have up to 3,000."""
MIN_STEPS = 200_000
"""Steps of any rendering: about 0.2 s. Templates of current models take about 50 steps per message."""
STEPS_PER_VALUE = 500
"""Further steps per value in the messages and tools. A template may compare each message with all others."""
MIN_PROMPT = 32_768
"""Characters that a template may write besides those that stand for the messages and tools."""
PROMPT_GROWTH = 8
"""Characters that a template may write per character of the messages and tools, such as indents of JSON."""
_MAX_FORMAT = 200  # characters of a date's format
_PREFIX = "scrubjay "  # of the filters below; the space keeps templates from naming them


def render_chat(
    tokenizer: Any,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """Return the text that a chat template writes for a conversation.

    Args:
        tokenizer: Tokenizer whose special tokens the template may write.
        template: Jinja template.
        messages: Messages of the conversation.
        tools: Tools in OpenAI's format.
        add_generation_prompt: Let the template write the beginning of an answer.

    Raises TemplateLimitError, which says what to do, if the template takes too many steps or writes too much.
    Raises ValueError, with the template's own error as its cause, if the template fails in any other way.
    """
    try:
        values = {
            **_plain(dict(getattr(tokenizer, "special_tokens_map", None) or {})),
            "messages": _plain(list(messages)),
            "tools": _plain(tools) if tools is None else _plain(list(tools)),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        characters, count = _count(values)
        if len(template) > MAX_TEMPLATE:
            raise TemplateLimitError(f"it has {len(template):,} characters, limit {MAX_TEMPLATE:,}")
        program = _compile(template)
        with metering(MIN_STEPS + STEPS_PER_VALUE * count + characters // 2):
            prompt = program.render(values)
    except TemplateLimitError as error:
        raise _refuse(str(error)) from None
    except Exception as error:
        if isinstance(error, RecursionError):
            error = RecursionError("it is nested too deeply, or calls itself without end")
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"the chat template fails: {reason:.500}; pass another template as "
            "LocalChatModel(chat_template=...)"
        ) from error
    most = MIN_PROMPT + PROMPT_GROWTH * (characters + NODE * count)
    if len(prompt) > most:
        raise _refuse(f"it writes {len(prompt):,} characters for this conversation, limit {most:,}")
    return prompt


def _refuse(reason: str) -> TemplateLimitError:
    return TemplateLimitError(
        f"the chat template is refused: {reason}; pass another template as LocalChatModel(chat_template=...)"
    )


def _plain(value: Any) -> Any:
    """Return a value rebuilt from JSON's types; any other object becomes a text with its type's name."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _count(value: Any) -> tuple[int, int]:
    """Return the characters of all texts in a value of JSON's types, and the number of its values."""
    characters, count, waiting = 0, 0, [value]
    while waiting:
        part = waiting.pop()
        count += 1
        if isinstance(part, str):
            characters += len(part)
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            waiting += part
    return characters, count


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which every operation of a template spends steps."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        # The optimizer would run parts of a template before any step is counted.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_Generation, loopcontrols],
            finalize=_finalize,
        )
        self.filters["tojson"] = _to_json
        self.filters = {name: _meter_calls(self.filters[name], cost) for name, cost in FILTERS.items()}
        self.filters |= {_PREFIX + name: function for name, function in _FUNCTIONS.items()}
        self.tests = {name: _meter_calls(self.tests[name], cost) for name, cost in TESTS.items()}
        names = ("range", "cycler", "joiner")
        self.globals = {name: self.globals[name] for name in names}
        self.globals |= {
            "dict": _make_dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._callable_ids = frozenset(map(id, self.globals.values()))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # type: ignore[override]
        """Join the output of a template, a macro or a block."""
        texts: list[str] = []
        for text in parts:
            spend(len(text))
            texts.append(text)
        return "".join(texts)

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        count = sum(1 for _ in source.find_all(nodes.Node))
        if count > MAX_NODES:
            raise TemplateLimitError(f"its syntax tree has {count:,} nodes, limit {MAX_NODES:,}")
        return super()._generate(_Metering().visit(source), *args, **options)

    def getattr(self, obj: Any, attribute: str) -> Any:
        spend()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        spend(size(argument) if isinstance(argument, tuple) else 0)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Any:
        function = super().wrap_str_format(value)
        if function is None:
            return None

        def call(*args: Any, **options: Any) -> str:
            spend(format_cost(value.__self__, *args, **options))
            return function(*args, **options)

        call.is_metered = True
        return call

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        spend(operator_cost(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:  # noqa: PYI063
        spend(NODE * (len(args) + len(options)))
        if isinstance(__obj, (types.BuiltinMethodType, types.MethodType)):
            owner, name = __obj.__self__, __obj.__name__
            if isinstance(owner, (LoopContext, Cycler, Joiner)):
                spend(size(*args))
            elif (cost := method_cost(owner, name)) is None:
                raise SecurityError(f"a chat template may not call the method {name!r}")
            else:
                spend(cost(owner, *args, **options))
        elif not (
            id(__obj) in __self._callable_ids
            or getattr(__obj, "is_metered", False)
            or isinstance(__obj, (BlockReference, Cycler, Joiner, LoopContext, Macro, Undefined))
        ):
            raise SecurityError(f"a chat template may not call {type(__obj).__name__!r} objects")
        return super().call(__context, __obj, *args, **options)


class _Metering(NodeTransformer):
    """Rewrite a template so that its loops, literals, slices and comparisons spend steps."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_tick(), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_tick(), node.test)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _apply("join", nodes.Tuple(node.nodes, "load"))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if len(node.ops) == 1:
            (operand,) = node.ops
            is_equality = operand.op not in ("in", "notin")
            if is_equality and any(isinstance(side, nodes.Const) for side in (node.expr, operand.expr)):
                return node
            return _apply("compare", node.expr, nodes.Const(operand.op), operand.expr)
        node.expr = _apply("weigh", node.expr)
        for operand in node.ops:
            operand.expr = _apply("weigh", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _apply("copy", node) if isinstance(node.arg, nodes.Slice) else node

    def _visit_literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _apply("copy", node)

    visit_List = visit_Dict = visit_Tuple = _visit_literal


def _apply(name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, _PREFIX + name, list(args), [], None, None)


def _tick() -> nodes.Filter:
    return _apply("tick", nodes.Const(True))


def _tick_once(value: Any) -> Any:
    spend()
    return value


def _copy(value: Any) -> Any:
    spend(width(value))
    return value


def _weigh(value: Any) -> Any:
    spend(size(value))
    return value


def _compare(left: Any, name: str, right: Any) -> Any:
    spend(compare_cost(left, name, right))
    return COMPARISONS[name](left, right)


@pass_eval_context
def _join(context: Any, values: tuple[Any, ...]) -> str:
    spend(size(*values))
    return markup_join(values) if context.autoescape else str_join(values)


_FUNCTIONS = {"tick": _tick_once, "copy": _copy, "weigh": _weigh, "compare": _compare, "join": _join}


@pass_context
def _finalize(context: Any, value: Any) -> Any:  # with a context, Jinja does not call it in compilation
    spend(size(value))
    return value


def _meter_calls(function: Callable[..., Any], cost: Callable[..., int]) -> Callable[..., Any]:
    """Return a filter or test that spends steps before it runs, and returns a list for an iterator."""
    skip = 0 if _PassArg.from_obj(function) is None else 1

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        spend(cost(*args[skip:], **options))
        result = function(*args, **options)
        return list(_spend_each(result)) if isinstance(result, Iterator) else result

    return call


def _spend_each(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        spend(NODE)
        yield value


class _Namespace(Namespace):
    """Namespace without attributes that begin with an underscore."""

    def __init__(*args: Any, **attributes: Any) -> None:  # an attribute may be named self
        for name in dict(*args[1:], **attributes):
            _check_name(name)
        Namespace.__init__(*args, **attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not set the attribute {name!r} of a namespace")


def _make_dict(*args: Any, **values: Any) -> dict[Any, Any]:
    spend(sum(map(width, args)))
    return dict(*args, **values)


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message) if isinstance(message, str) else type(message).__name__)


def _strftime_now(form: str) -> str:
    if len(form) > _MAX_FORMAT or any(character.isdigit() for character in form):
        raise TemplateLimitError(f"it formats a date with digits, or with more than {_MAX_FORMAT} characters")
    return datetime.now().strftime(form)  # the local time, as in transformers


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Generation(Extension):
    """Tag `generation` of transformers, which marks the text of an answer; here it only has a scope."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@functools.cache
def _environment() -> _Environment:
    return _Environment()


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> Any:
    return _environment().from_string(template)

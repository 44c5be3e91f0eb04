"""Format of an answer: free text, tool calls or JSON that matches a schema, and how each is parsed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from langchain_core.language_models import LanguageModelInput
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass

from scrubjay.agents.chat.constraint import CALL_BEGIN, CALL_END, Constraint, json_grammar, tool_grammar
from scrubjay.agents.chat.language_model import LoadedModel

_HEAD = re.compile(r'\n\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')
_TAIL = f"}}\n{CALL_END}"


@dataclass(frozen=True)
class AnswerFormat:
    """Format of an answer, with the instruction for the model and the grammar constraint."""

    tools: Sequence[dict[str, Any]] = ()
    """Functions described in the prompt, in OpenAI's format."""
    callable_tools: Sequence[dict[str, Any]] = ()
    """Subset of `tools` that the model may call in this answer."""
    require_call: bool = False
    """Require a tool call."""
    parallel: bool = False
    """Allow several tool calls in one answer."""
    schema: dict[str, Any] | None = None
    """JSON schema of the whole answer; None if the answer is not JSON."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> AnswerFormat:
        """Return the format for OpenAI's options: tools, tool_choice, parallel_tool_calls, response_format.

        Raises ValueError if `tool_choice` names an unknown tool, or if tools and response_format are
        combined.
        """
        tools, choice = options.get("tools") or (), options.get("tool_choice")
        schema = _schema(options.get("response_format"))
        if isinstance(choice, dict):
            choice = choice["function"]["name"]
        names = [tool["function"]["name"] for tool in tools]
        if not tools:
            if choice not in (None, False, "none", "auto"):
                raise ValueError(
                    f"tool_choice={choice!r}: there are no tools; pass tools, or leave tool_choice out"
                )
            return cls(schema=schema)
        if schema is not None:
            raise ValueError("tools and response_format exclude each other; pass one of them")
        parallel = bool(options.get("parallel_tool_calls", False))
        if choice in (False, "none"):
            return cls(tools)
        if choice in (None, "auto"):
            return cls(tools, tools, parallel=parallel)
        if choice in (True, "any", "required"):
            return cls(tools, tools, require_call=True, parallel=parallel)
        if choice not in names:
            raise ValueError(
                f"tool_choice={choice!r}: unknown tool; choose from auto, any, none, {', '.join(names)}"
            )
        return cls(tools, [tools[names.index(choice)]], require_call=True, parallel=parallel)

    @property
    def instruction(self) -> str:
        """Instruction for the model about the JSON format; empty if there is no schema."""
        if self.schema is None:
            return ""
        if self.schema == _ANY_OBJECT:
            return "Answer with a JSON object and nothing else."
        schema = json.dumps(self.schema, ensure_ascii=False)
        return f"Answer with JSON of this schema and nothing else:\n{schema}"

    def build_constraint(self, loaded_model: LoadedModel) -> Constraint | None:
        """Return the grammar constraint of this format; None for free text."""
        if self.schema is not None:
            return Constraint(loaded_model.vocabulary, json_grammar(self.schema))
        if not self.callable_tools:
            return None
        grammar = tool_grammar(
            self.callable_tools,
            require_call=self.require_call,
            parallel=self.parallel,
            begin_is_token=loaded_model.call_begin_is_token,
        )
        return Constraint(loaded_model.vocabulary, grammar)


_ANY_OBJECT = {"type": "object"}


def _schema(response_format: Any) -> dict[str, Any] | None:
    """Return the JSON schema of an OpenAI response format; None if the format is text."""
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return _ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
    raise ValueError(
        f"response_format={response_format!r}: expected "
        '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}} or {"type": "json_object"}'
    )


class CallPart(NamedTuple):
    """Part of a streamed tool call: first the tool's name, then pieces of the arguments in JSON."""

    index: int
    name: str | None
    arguments: str


class CallSplitter:
    """Incremental parser of answers in the syntax of `tool_grammar`; yields text and parts of calls."""

    def __init__(self) -> None:
        self._buffer = ""
        self._index = -1
        self._in_call = self._has_name = False

    def push(self, piece: str) -> Iterator[str | CallPart]:
        """Add a piece of the answer; yield the text and call parts that are complete."""
        self._buffer += piece
        while True:
            before = self._buffer
            yield from self._in_arguments() if self._in_call else self._in_text()
            if self._buffer == before:
                return

    def finish(self) -> Iterator[str | CallPart]:
        """Yield the text or call part that is in the buffer at the end of the answer."""
        rest, self._buffer = self._buffer, ""
        if rest and self._has_name:
            yield CallPart(self._index, None, rest)
        elif rest and not self._in_call:
            yield rest

    def _in_text(self) -> Iterator[str]:
        text, mark, after = self._buffer.partition(CALL_BEGIN)
        between_calls = self._index >= 0
        if mark:
            self._buffer, self._in_call, self._has_name = after, True, False
            self._index += 1
        else:
            # Buffer an incomplete mark at the end of the text.
            sizes = (size for size in range(len(CALL_BEGIN) - 1, 0, -1) if text.endswith(CALL_BEGIN[:size]))
            cut = len(text) - next(sizes, 0)
            text, self._buffer = text[:cut], text[cut:]
        # Drop the line break between calls.
        if text and not (between_calls and text.isspace()):
            yield text

    def _in_arguments(self) -> Iterator[CallPart]:
        if not self._has_name:
            head = _HEAD.match(self._buffer)
            if head is None:
                return
            self._has_name, self._buffer = True, self._buffer[head.end() :]
            yield CallPart(self._index, json.loads(head[1]), "")
        arguments, tail, after = self._buffer.partition(_TAIL)
        if tail:
            self._buffer, self._in_call = after, False
        else:
            cut = max(0, len(arguments) - len(_TAIL) + 1)
            arguments, self._buffer = arguments[:cut], arguments[cut:]
        if arguments:
            yield CallPart(self._index, None, arguments)


def parse_answers(
    model: Runnable[LanguageModelInput, Any], schema: dict[str, Any] | type, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """Return a chain that runs the model and parses its JSON answer.

    The chain returns an object of `schema` if `schema` is a pydantic class, and plain data for any other
    schema. With `include_raw` the result is a dict with the keys `raw`, `parsed` and `parsing_error`, as in
    langchain.
    """
    parser: OutputParserLike = JsonOutputParser()
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        parser = PydanticOutputParser(pydantic_object=schema)
    if not include_raw:
        return model | parser
    all_three = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    ).with_fallbacks([RunnablePassthrough.assign(parsed=lambda _: None)], exception_key="parsing_error")
    return RunnableMap(raw=model) | all_three

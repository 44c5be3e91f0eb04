"""What form an answer must have: free text, tool calls, or JSON of a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scrubjay.agents.chat.constraint import Constraint, json_grammar, tool_grammar
from scrubjay.agents.chat.loaded import LoadedModel


@dataclass(frozen=True)
class AnswerFormat:
    """The form, and what the model is told of it."""

    tools: Sequence[dict[str, Any]] = ()
    """Functions the model knows of, in OpenAI's format."""
    callable_tools: Sequence[dict[str, Any]] = ()
    """Those of them it may call now."""
    required: bool = False
    """Whether it must call."""
    parallel: bool = False
    """Whether it may call several times in one answer."""
    schema: dict[str, Any] | None = None
    """JSON schema of the whole answer."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> AnswerFormat:
        """Return the format that OpenAI's keywords ask for: tools, tool_choice, response_format.

        Raises ValueError on a choice of a tool that is not there, and on formats that exclude each other.
        """
        tools, choice = given.get("tools") or (), given.get("tool_choice")
        schema = _schema(given.get("response_format"))
        if isinstance(choice, dict):
            choice = choice["function"]["name"]
        names = [tool["function"]["name"] for tool in tools]
        if not tools:
            if choice not in (None, False, "none", "auto"):
                raise ValueError(f"tool_choice={choice!r}, but there are no tools")
            return cls(schema=schema)
        if schema is not None:
            raise ValueError("tools and response_format exclude each other: an answer has one form")
        parallel = bool(given.get("parallel_tool_calls", False))
        if choice in (False, "none"):
            return cls(tools)
        if choice in (None, "auto"):
            return cls(tools, tools, parallel=parallel)
        if choice in (True, "any", "required"):
            return cls(tools, tools, required=True, parallel=parallel)
        if choice not in names:
            raise ValueError(
                f"tool_choice={choice!r}: choose 'auto', 'any', 'none' or a tool: {', '.join(names)}"
            )
        return cls(tools, [tools[names.index(choice)]], required=True, parallel=parallel)

    @property
    def instruction(self) -> str:
        """What the model is told beside the tools."""
        if self.schema is None:
            return ""
        if self.schema == _ANY_OBJECT:
            return "Answer with a JSON object and nothing else."
        schema = json.dumps(self.schema, ensure_ascii=False)
        return f"Answer with JSON of this schema and nothing else:\n{schema}"

    def constraint(self, loaded: LoadedModel) -> Constraint | None:
        """Return what holds the answer to this form; None for free text."""
        if self.schema is not None:
            return Constraint(loaded.vocabulary, json_grammar(self.schema))
        if not self.callable_tools:
            return None
        grammar = tool_grammar(
            self.callable_tools,
            required=self.required,
            parallel=self.parallel,
            begin_is_token=loaded.call_begin_is_token,
        )
        return Constraint(loaded.vocabulary, grammar)


_ANY_OBJECT = {"type": "object"}


def _schema(response_format: Any) -> dict[str, Any] | None:
    """Return the JSON schema of a response format as OpenAI has it."""
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

"""Format of an answer: free text, tool calls, or JSON that matches a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scrubjay.agents.chat.constraint import Constraint, json_grammar, tool_grammar
from scrubjay.agents.chat.language_model import LoadedModel


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

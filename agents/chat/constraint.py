"""JSON that a language model cannot get wrong: at every token only what keeps the answer valid may be chosen.

The automaton over the tokenizer's vocabulary is llguidance's (MIT; one wheel of 3 MB that needs no other
package). Beyond it: an answer that runs into its token limit is closed in time, so that it is valid whatever
the limit, as long as the shortest valid answer fits (`Constraint.shortest_end`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

CALL_BEGIN = "<tool_call>"
CALL_END = "</tool_call>"

# Whitespace and escapes as `json.dumps(value, ensure_ascii=False)` writes them: what the model said and what
# is written of it into the next prompt are then the same text, and the cache of the conversation stays good.
_SPELLING = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "json_allow_general_unicode_escapes": False,
    "lenient": True,
}
_LONGEST_END = 512


class Constraint:
    """What an answer may still become, token by token; starts before the answer's first token.

    `vocabulary` is an `llguidance.LLTokenizer`, `grammar` one of this module's. Raises ValueError on a
    grammar that the automaton cannot follow, such as a JSON schema that contradicts itself.
    """

    def __init__(self, vocabulary: Any, grammar: str) -> None:
        from llguidance import LLMatcher

        self._vocabulary = vocabulary
        self._matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar), log_level=0)
        self._check()

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def restrict(self, logits: Float[Tensor, "vocabulary"]) -> Float[Tensor, "vocabulary"]:
        """Return the logits with -inf for every token that would make the answer invalid."""
        allowed = torch.zeros(logits.shape, dtype=torch.bool)
        mask = torch.from_numpy(self._allowed())
        size = min(len(mask), len(allowed))
        allowed[:size] = mask[:size]
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def accept(self, tokens: Sequence[int]) -> None:
        """Advance by tokens of the answer. Raises ValueError if they are not allowed."""
        self._matcher.consume_tokens(list(tokens))
        self._check()

    def forced(self) -> list[int]:
        """Return the tokens that must come next, whatever the model thinks: they need no choice."""
        return self._matcher.compute_ff_tokens()

    def after(self, token: int) -> Constraint:
        """Return the constraint that holds once `token` is said; this one stays as it is."""
        other = object.__new__(Constraint)
        other._vocabulary, other._matcher = self._vocabulary, self._matcher.deep_copy()
        other.accept([token])
        return other

    def shortest_end(self) -> list[int] | None:
        """Return few tokens that complete the answer, none if it is complete; None if none were found.

        Found greedily: containers and strings are closed as soon as they may be, numbers are one digit.
        """
        matcher, end = self._matcher.deep_copy(), []
        while not matcher.is_accepting():
            tokens = matcher.compute_ff_tokens() or [self._closing(_unpack(matcher.compute_bitmask()))]
            if len(end) + len(tokens) > _LONGEST_END or not matcher.consume_tokens(tokens):
                return None
            end += tokens
        return end

    def _closing(self, allowed: np.ndarray) -> int:
        """Return the allowed token that brings the end nearest."""
        letter = self._token("a")
        # Letters are allowed inside strings, and there braces are letters too.
        inside_string = letter is not None and allowed[letter]
        for text in ('"', "a") if inside_string else ("}", "]", '"', "0", "1", "null", "true"):
            token = self._token(text)
            if token is not None and allowed[token]:
                return token
        return int(np.flatnonzero(allowed)[0])

    def _token(self, text: str) -> int | None:
        tokens = self._vocabulary.tokenize_str(text)
        return tokens[0] if len(tokens) == 1 else None

    def _allowed(self) -> np.ndarray:
        return _unpack(self._matcher.compute_bitmask())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"cannot constrain the answer: {self._matcher.get_error()}")


def _unpack(bits: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little").astype(bool)


def json_grammar(schema: dict[str, Any]) -> str:
    """Return the grammar of one JSON value of this JSON schema."""
    return f"start: {_json(schema)}\n"


def tool_grammar(
    tools: Sequence[dict[str, Any]], *, required: bool, parallel: bool, begin_is_token: bool
) -> str:
    """Return the grammar of answers that may call `tools`, functions in OpenAI's format.

    A call is `<tool_call>`, `{"name": ..., "arguments": {...}}` and `</tool_call>`, each on its own line.
    Unless `required`, text may come first or alone; with `parallel` there may be several calls.
    `begin_is_token` says that `<tool_call>` is a special token of the vocabulary and not seven letters in
    brackets.
    """
    begin = CALL_BEGIN if begin_is_token else json.dumps(CALL_BEGIN)
    calls = " | ".join(_json(_call_schema(tool)) for tool in tools)
    rules = [f'body: "\\n" ({calls}) {json.dumps(chr(10) + CALL_END)}']
    if required:
        rules.append(f"call: {begin} body")
        rules.append('start: call ("\\n" call)*' if parallel else "start: call")
    else:
        # Lazy: the lexeme ends at the first `<tool_call>`, and the schema rules from there on.
        trigger = f"trigger: TEXT {begin}" if begin_is_token else f"trigger[lazy]: TEXT {begin}"
        rules += [r"TEXT: /(.|\n)*/", trigger, "plain: TEXT"]
        rules.append("start: (trigger body)* plain" if parallel else "start: plain | trigger body")
    return "%llguidance {}\n" + "\n".join(rules) + "\n"


def _call_schema(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    arguments = function.get("parameters") or {"type": "object", "properties": {}}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
    }


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(_closed(schema) | {'x-guidance': _SPELLING})}"


def _closed(schema: Any) -> Any:
    """Return the schema without unlisted properties, where it does not say that there may be some."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: value if key in ("const", "enum", "default", "examples") else _closed(value)
        for key, value in schema.items()
    }
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed

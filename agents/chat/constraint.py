"""Grammar-constrained decoding: only tokens that keep the answer valid can be sampled.

The package llguidance (MIT; one wheel of 3 MB without dependencies) computes the allowed tokens. In addition,
an answer that approaches its token limit is completed in time by the tokens of `Constraint.shortest_end`.
Such an answer is therefore valid, unless the search for these tokens fails.
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

# Whitespace and escapes as in `json.dumps(value, ensure_ascii=False)`: the generated text then equals the
# text in the next prompt, and the conversation's cache stays valid.
_SPELLING = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "json_allow_general_unicode_escapes": False,
    "lenient": True,
}
_MAX_END_TOKENS = 512


class Constraint:
    """Grammar constraint on an answer, updated after each token of the answer.

    `vocabulary` is an `llguidance.LLTokenizer`. `grammar` is the result of `json_grammar` or `tool_grammar`.
    Raises ValueError if llguidance does not support the grammar, for example if a JSON schema contradicts
    itself.
    """

    def __init__(self, vocabulary: Any, grammar: str) -> None:
        from llguidance import LLMatcher

        self._vocabulary = vocabulary
        self._matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar), log_level=0)
        self._check()

    @property
    def is_finished(self) -> bool:
        """True if the grammar allows no more tokens."""
        return self._matcher.is_stopped()

    def restrict(self, logits: Float[Tensor, "vocabulary"]) -> Float[Tensor, "vocabulary"]:
        """Return the logits with -inf for all tokens that would make the answer invalid."""
        allowed_tokens = torch.zeros(logits.shape, dtype=torch.bool)
        mask = torch.from_numpy(_unpack(self._matcher.compute_bitmask()))
        size = min(len(mask), len(allowed_tokens))
        allowed_tokens[:size] = mask[:size]
        return logits.masked_fill(~allowed_tokens.to(logits.device), -torch.inf)

    def accept(self, tokens: Sequence[int]) -> None:
        """Advance the constraint by `tokens`. Raises ValueError if the grammar does not allow a token."""
        self._matcher.consume_tokens(list(tokens))
        self._check()

    def forced_tokens(self) -> list[int]:
        """Return the next tokens for which the grammar leaves no choice; [] if there is a choice."""
        return self._matcher.compute_ff_tokens()

    def copy_after(self, token: int) -> Constraint:
        """Return a copy of the constraint that has accepted `token`; `self` is not changed."""
        other = object.__new__(Constraint)
        other._vocabulary, other._matcher = self._vocabulary, self._matcher.deep_copy()
        other.accept([token])
        return other

    def shortest_end(self) -> list[int] | None:
        """Return a few tokens that complete the answer; [] if it is complete, None if the search fails.

        The search is greedy. It closes containers and strings as early as possible and writes numbers of one
        digit.
        """
        matcher, end = self._matcher.deep_copy(), []
        while not matcher.is_accepting():
            tokens = matcher.compute_ff_tokens() or [
                self._pick_closing_token(_unpack(matcher.compute_bitmask()))
            ]
            if len(end) + len(tokens) > _MAX_END_TOKENS or not matcher.consume_tokens(tokens):
                return None
            end += tokens
        return end

    def _pick_closing_token(self, allowed_tokens: np.ndarray) -> int:
        """Return the allowed token that should complete the answer soonest."""
        letter = self._token("a")
        # If letters are allowed, we are inside a string, where braces do not close anything.
        inside_string = letter is not None and allowed_tokens[letter]
        for text in ('"', "a") if inside_string else ("}", "]", '"', "0", "1", "null", "true"):
            token = self._token(text)
            if token is not None and allowed_tokens[token]:
                return token
        return int(np.flatnonzero(allowed_tokens)[0])

    def _token(self, text: str) -> int | None:
        tokens = self._vocabulary.tokenize_str(text)
        return tokens[0] if len(tokens) == 1 else None

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"cannot constrain the answer: {self._matcher.get_error()}")


def _unpack(bits: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little").astype(bool)


def json_grammar(schema: dict[str, Any]) -> str:
    """Return the grammar of a JSON value with this JSON schema."""
    return f"start: {_json(schema)}\n"


def tool_grammar(
    tools: Sequence[dict[str, Any]], *, require_call: bool, parallel: bool, begin_is_token: bool
) -> str:
    """Return the grammar of answers that may call `tools` (functions in OpenAI's format).

    A call has three lines: `<tool_call>`, `{"name": ..., "arguments": {...}}` and `</tool_call>`. Without
    `require_call`, text may precede or replace the call. With `parallel`, several calls are allowed.
    `begin_is_token` is True if `<tool_call>` is a special token of the vocabulary.
    """
    begin = CALL_BEGIN if begin_is_token else json.dumps(CALL_BEGIN)
    calls = " | ".join(
        _json(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": tool["function"].get("parameters") or {"type": "object", "properties": {}},
                },
                "required": ["name", "arguments"],
            }
        )
        for tool in tools
    )
    rules = [f'body: "\\n" ({calls}) {json.dumps(chr(10) + CALL_END)}']
    if require_call:
        rules.append(f"call: {begin} body")
        rules.append('start: call ("\\n" call)*' if parallel else "start: call")
    else:
        # Lazy: the lexeme ends at the first `<tool_call>`, after which the schema applies.
        trigger = f"trigger: TEXT {begin}" if begin_is_token else f"trigger[lazy]: TEXT {begin}"
        rules += [r"TEXT: /(.|\n)*/", trigger, "plain: TEXT"]
        rules.append("start: (trigger body)* plain" if parallel else "start: plain | trigger body")
    return "%llguidance {}\n" + "\n".join(rules) + "\n"


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(_close_objects(schema) | {'x-guidance': _SPELLING})}"


def _close_objects(schema: Any) -> Any:
    """Return the schema with `additionalProperties: false` in objects that do not set it."""
    if isinstance(schema, list):
        return [_close_objects(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {
        key: value if key in ("const", "enum", "default", "examples") else _close_objects(value)
        for key, value in schema.items()
    }
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        result.setdefault("additionalProperties", False)
    return result

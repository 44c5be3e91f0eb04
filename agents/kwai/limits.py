"""Limits on the cost of one question, and the meter that tracks its cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage

from scrubjay.agents.language.text import estimate_tokens

_TEMPLATE_TOKENS = 16


@dataclass(frozen=True)
class Limits:
    """Limits on one question. Planning stops when the first limit is reached; the answer is still written.

    All limits are enabled by default. Calls of the model have no timeout here; set it on the model
    (`timeout=`).
    """

    tool_calls: int = 10
    """Maximum number of tool calls."""
    tokens: int = 200_000
    """Maximum tokens of all model calls, as the model reports them, or estimated if it does not."""
    seconds: float = 300.0
    """Maximum wall-clock time in seconds, checked between calls; also the maximum for a tool that starts."""
    identical_calls: int = 1
    """Maximum number of calls of one tool with the same arguments."""
    tool_seconds: float = 30.0
    """Timeout of one tool in seconds. A thread cannot be killed: a tool that timed out may continue in the
    background."""
    result_tokens: int = 2_000
    """Maximum tokens of one tool's result; the rest is cut with a note."""
    context_tokens: int = 8_192
    """Maximum tokens of one prompt. An agent created without limits uses the context window of its model
    (`make_limits`)."""
    dialogue_tokens: int = 4_096
    """Maximum tokens of earlier turns in the prompt, also bounded by half of the prompt; 1 shows hardly any.
    Small models copy their earlier answers, and answer better from memory alone."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}={value}: must be positive")


def make_limits(model: Any, **overrides: Any) -> Limits:
    """Return the default limits with `overrides`, and with prompts that stay in the view of `model`.

    A `LocalChatModel` has `tokens_in_view`. Its cache would silently drop the beginning of a longer prompt:
    the rules and the tools.
    """
    tokens_in_view = getattr(model, "tokens_in_view", None)
    if tokens_in_view is not None and tokens_in_view < Limits.context_tokens:
        overrides = {
            "context_tokens": tokens_in_view,
            "result_tokens": min(Limits.result_tokens, 1 + tokens_in_view // 4),
        } | overrides
    return Limits(**overrides)


def make_token_counter(model: Any) -> Callable[[str], int]:
    """Return a token counter: the tokenizer of a local model, else an estimate."""
    return estimate_tokens if getattr(model, "tokens_in_view", None) is None else model.get_num_tokens


def make_prompt_token_counter(model: Any) -> Callable[[str], int]:
    """Return a counter of a text's tokens in a prompt, including the template's tokens for a local model."""
    count_tokens = make_token_counter(model)
    if count_tokens is estimate_tokens:
        return estimate_tokens
    return lambda text: count_tokens(text) + _TEMPLATE_TOKENS


class Meter:
    """Meter of the cost of one question so far."""

    def __init__(self, limits: Limits, count_tokens: Callable[[str], int]) -> None:
        self.limits = limits
        self.usage: UsageMetadata = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        self.tool_calls = 0
        self._count_tokens = count_tokens
        self._start_time = time.monotonic()
        self._calls: dict[str, list[int]] = {}

    def record_usage(self, prompt: list[BaseMessage], reply: AIMessage) -> None:
        """Add the tokens of one model call."""
        usage = reply.usage_metadata
        if usage is None:
            input_tokens = sum(self._count_tokens(message.text) for message in prompt)
            output_tokens = self._count_tokens(reply.text)
            usage = UsageMetadata(
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                total_tokens=input_tokens + output_tokens,
            )
        self.usage = add_usage(self.usage, usage)

    def seconds_left(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self.limits.seconds - (time.monotonic() - self._start_time))

    def seconds_for_a_tool(self) -> float:
        """Return the timeout of a tool that starts now."""
        return min(self.limits.tool_seconds, self.seconds_left())

    def record_tool_call(self, name: str, arguments: Mapping[str, Any], step: int) -> None:
        """Record that a tool is run at `step`."""
        self.tool_calls += 1
        self._calls.setdefault(_key(name, arguments), []).append(step)

    def find_repeat(self, name: str, arguments: Mapping[str, Any]) -> int | None:
        """Return the last step of an identical call if the limit on identical calls is reached, else None."""
        steps = self._calls.get(_key(name, arguments), [])
        return steps[-1] if len(steps) >= self.limits.identical_calls else None

    def reached_limit(self) -> str | None:
        """Return the name of a limit that is reached; None if there is none."""
        if self.tool_calls >= self.limits.tool_calls:
            return "tool_calls"
        if self.usage["total_tokens"] >= self.limits.tokens:
            return "tokens"
        return None if self.seconds_left() > 0 else "seconds"


def _key(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name} {json.dumps(arguments, sort_keys=True, default=str)}"

"""Limits on the cost of one question, and the meter that tracks its cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage

from scrubjay.agents.language.text import estimate_tokens, make_token_counter

_TEMPLATE_TOKENS = 16


@dataclass(frozen=True)
class Limits:
    """Limits on the cost of one question. When a limit is reached, planning stops and the agent answers.

    All limits are enabled by default. These limits include no timeout of a model call; set this timeout on
    the model (`timeout=`).
    """

    tool_calls: int = 10
    """Maximum number of tool calls."""
    tokens: int = 200_000
    """Maximum tokens of all model calls together; estimated if the model does not report its usage."""
    seconds: float = 300.0
    """Maximum wall-clock time of a question in seconds, checked between calls.

    A tool's timeout is at most the time that is left."""
    identical_calls: int = 1
    """Maximum number of calls of one tool with the same arguments."""
    tool_seconds: float = 30.0
    """Timeout of one tool in seconds. A thread cannot be killed: a tool that timed out may continue in the
    background."""
    result_tokens: int = 2_000
    """Maximum tokens of one tool's result; a longer result is cut and gets a note."""
    context_tokens: int = 8_192
    """Maximum tokens of one prompt. For an agent created without limits, `make_limits` lowers this value to
    the prompt length that its local model can read in full."""
    dialogue_tokens: int = 4_096
    """Maximum tokens of earlier turns in the prompt; never more than half of `context_tokens`.

    Small models copy their earlier answers. For such models a value of 1 is better: the prompt then contains
    hardly any earlier turn, and the model answers from the memory."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}={value}: must be positive")


def make_limits(model: Any, **overrides: Any) -> Limits:
    """Return the default limits, lowered to the prompt length that `model` can read in full.

    A `LocalChatModel` can read prompts of at most `tokens_in_view` tokens in full. If this number is smaller
    than the default `context_tokens`, it replaces this default, and `result_tokens` is at most about a
    quarter of it. Without the lower limits, the model's cache would silently drop the beginning of a longer
    prompt, which contains the rules and the tools. Values in `overrides` replace the computed limits.
    """
    tokens_in_view = getattr(model, "tokens_in_view", None)
    if tokens_in_view is not None and tokens_in_view < Limits.context_tokens:
        overrides = {
            "context_tokens": tokens_in_view,
            "result_tokens": min(Limits.result_tokens, 1 + tokens_in_view // 4),
        } | overrides
    return Limits(**overrides)


def make_prompt_token_counter(model: Any) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text inside a prompt.

    For a local model, the count includes 16 tokens for the chat template.
    """
    count_tokens = make_token_counter(model)
    if count_tokens is estimate_tokens:
        return estimate_tokens
    return lambda text: count_tokens(text) + _TEMPLATE_TOKENS


class Meter:
    """Counter of the tokens, tool calls and seconds that one question has used so far."""

    def __init__(self, limits: Limits, count_tokens: Callable[[str], int]) -> None:
        self.limits = limits
        self.usage: UsageMetadata = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        self.dropped_tokens = self.tool_calls = 0
        self._count_tokens = count_tokens
        self._start_time = time.monotonic()
        self._calls: dict[str, list[int]] = {}

    def record_usage(self, prompt: list[BaseMessage], reply: AIMessage) -> None:
        """Add the tokens of one model call, and note how many tokens a local model's cache has dropped."""
        self.dropped_tokens = max(self.dropped_tokens, reply.response_metadata.get("dropped_tokens", 0))
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
        """Return the seconds left for the question, at least 0."""
        return max(0.0, self.limits.seconds - (time.monotonic() - self._start_time))

    def record_tool_call(self, name: str, arguments: Mapping[str, Any], step: int) -> None:
        """Record that a tool is run at `step`."""
        self.tool_calls += 1
        self._calls.setdefault(_key(name, arguments), []).append(step)

    def find_repeat(self, name: str, arguments: Mapping[str, Any]) -> int | None:
        """Return the step of the last identical call if `identical_calls` is reached; None if not."""
        steps = self._calls.get(_key(name, arguments), [])
        return steps[-1] if len(steps) >= self.limits.identical_calls else None

    def reached_limit(self) -> str | None:
        """Return the name of a limit that is reached; None if no limit is reached."""
        if self.tool_calls >= self.limits.tool_calls:
            return "tool_calls"
        if self.usage["total_tokens"] >= self.limits.tokens:
            return "tokens"
        return None if self.seconds_left() > 0 else "seconds"


def _key(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name} {json.dumps(arguments, sort_keys=True, default=str)}"

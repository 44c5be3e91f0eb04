"""How much one question may cost, and the meter that says when it has."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage

from scrubjay.agents.language.text import estimate_tokens

_AROUND = 16


@dataclass(frozen=True)
class Limits:
    """Bounds on one question. Planning stops at the first one reached; the answer is still written.

    Each is on by default. Calls of the model have no deadline of their own here: give the model one
    (`timeout=`).
    """

    tool_calls: int = 10
    """Tools run."""
    tokens: int = 200_000
    """Tokens of all calls of the model, as it reports them, or estimated if it does not."""
    seconds: float = 300.0
    """Wall clock, looked at between calls; a tool gets no more than what is left."""
    identical_calls: int = 1
    """Times that one tool may run with the same arguments."""
    tool_seconds: float = 30.0
    """Wall clock of one tool. A thread cannot be killed: what timed out is no longer waited for, but may run
    on."""
    result_tokens: int = 2_000
    """Tokens kept of one tool's result; the rest is cut with a note."""
    context_tokens: int = 8_192
    """Tokens of one prompt. Without limits of its own an agent takes no more than its model sees
    (`limits_for`)."""
    dialogue_tokens: int = 4_096
    """Tokens of earlier turns in it, at most half of the prompt; 1 shows hardly any. Small models copy what
    they said before, and answer better from memory alone."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}={value}: a limit must be positive")


def limits_for(model: Any, **given: Any) -> Limits:
    """Return the default limits but for what is given, and with prompts that `model` sees whole.

    A `LocalChatModel` tells how much that is. Of a longer prompt, the rules and the tools fall out of its
    cache first, and nothing says so.
    """
    seen = getattr(model, "tokens_in_view", None)
    if seen is not None and seen < Limits.context_tokens:
        given = {"context_tokens": seen, "result_tokens": min(Limits.result_tokens, 1 + seen // 4)} | given
    return Limits(**given)


def counter_for(model: Any) -> Callable[[str], int]:
    """Return how to count the tokens of a text: by a local model's tokenizer, else by estimate."""
    return estimate_tokens if getattr(model, "tokens_in_view", None) is None else model.get_num_tokens


def prompt_counter_for(model: Any) -> Callable[[str], int]:
    """Return how to count what a text takes of a prompt: locally, what a template writes around it, too."""
    count_tokens = counter_for(model)
    if count_tokens is estimate_tokens:
        return estimate_tokens
    return lambda text: count_tokens(text) + _AROUND


class Meter:
    """What one question has cost so far."""

    def __init__(self, limits: Limits, count_tokens: Callable[[str], int]) -> None:
        self.limits = limits
        self.usage: UsageMetadata = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        self.tool_calls = 0
        self._count_tokens = count_tokens
        self._begun = time.monotonic()
        self._calls: dict[str, list[int]] = {}

    def spend(self, prompt: list[BaseMessage], reply: AIMessage) -> None:
        """Add one call of the model."""
        used = reply.usage_metadata
        if used is None:
            sent = sum(self._count_tokens(message.text) for message in prompt)
            got = self._count_tokens(reply.text)
            used = UsageMetadata(input_tokens=sent, output_tokens=got, total_tokens=sent + got)
        self.usage = add_usage(self.usage, used)

    def seconds_left(self) -> float:
        """Return how much of the wall clock is left, never negative."""
        return max(0.0, self.limits.seconds - (time.monotonic() - self._begun))

    def seconds_for_a_tool(self) -> float:
        """Return the deadline of a tool that starts now."""
        return min(self.limits.tool_seconds, self.seconds_left())

    def ran(self, name: str, arguments: Mapping[str, Any], step: int) -> None:
        """Note that a tool runs."""
        self.tool_calls += 1
        self._calls.setdefault(_key(name, arguments), []).append(step)

    def repeats(self, name: str, arguments: Mapping[str, Any]) -> int | None:
        """Return the last step that ran this call, if it may not run again."""
        steps = self._calls.get(_key(name, arguments), [])
        return steps[-1] if len(steps) >= self.limits.identical_calls else None

    def reached(self) -> str | None:
        """Return the name of a limit that is reached, if any."""
        if self.tool_calls >= self.limits.tool_calls:
            return "tool_calls"
        if self.usage["total_tokens"] >= self.limits.tokens:
            return "tokens"
        return None if self.seconds_left() > 0 else "seconds"


def _key(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name} {json.dumps(arguments, sort_keys=True, default=str)}"

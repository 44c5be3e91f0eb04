"""Read a model's replies in the formats of different providers, and repair message histories."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ToolMessage,
    message_chunk_to_message,
)

from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import clean, clean_value

_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason")
_CUT = ("length", "max_tokens", "model_length", "max_output_tokens")
_OPEN, _CLOSE = "<think>", "</think>"
_THOUGHTS = re.compile(rf"\s*({_OPEN}.*?{_CLOSE}\s*)*", re.DOTALL)


def is_cut_off(reply: AIMessage) -> bool:
    """Return True if the reply reached its token limit and is therefore incomplete."""
    metadata = reply.response_metadata
    reasons = [metadata.get(name) for name in _REASONS]
    reasons.append((metadata.get("incomplete_details") or {}).get("reason"))
    return any(str(reason).lower() in _CUT for reason in reasons)


def extract_text(reply: AIMessage) -> str:
    """Return the clean text of a complete reply, without the reasoning that some models write first.

    The templates of DeepSeek-R1 and QwQ write `<think>` into the prompt. The reply then contains `</think>`
    without an earlier `<think>`, and all text before `</think>` is reasoning.
    """
    text = clean(reply.text)
    before, mark, rest = text.partition(_CLOSE)
    return strip_thoughts(rest.lstrip() if mark and _OPEN not in before else text)


def strip_thoughts(text: str) -> str:
    """Return `text` without the `<think>` blocks at its beginning.

    The result is empty while a block is incomplete. When `text` grows, the result only grows at its end,
    so that the result can be streamed. A block whose `<think>` is in the prompt cannot be recognized, so its
    text stays. `extract_text` removes such a block.
    """
    thoughts = _THOUGHTS.match(text)
    assert thoughts is not None
    rest = text[thoughts.end() :]
    if rest.startswith(_OPEN) or _OPEN.startswith(rest):
        return ""
    return rest if thoughts[1] else text


def keep_pending(text: str) -> str:
    """Shorten `text` to the part that `strip_thoughts` still needs when more text arrives.

    `text` must end before the answer begins. If the last reasoning block is unfinished, only its last
    characters are needed, because these characters may be the beginning of `</think>`.
    """
    thoughts = _THOUGHTS.match(text)
    assert thoughts is not None
    rest = text[thoughts.end() :]
    if rest.startswith(_OPEN):
        return _OPEN + rest[len(_OPEN) :][1 - len(_CLOSE) :]
    return f"{_OPEN}{_CLOSE}{rest}" if thoughts[1] else text


class AnswerStream:
    """Streamed answer that is assembled from chunks."""

    def __init__(self) -> None:
        self._chunks: list[AIMessage] = []
        self._text, self._has_text = "", False

    def add(self, chunk: AIMessage) -> str:
        """Add a chunk (or the whole message); return the new text of the answer without `<think>` blocks."""
        self._chunks.append(chunk)
        text = clean(chunk.text)
        if not self._has_text:
            self._text += text
            text = strip_thoughts(self._text)
            self._has_text = bool(text)
            self._text = "" if self._has_text else keep_pending(self._text)
        return text

    @property
    def message(self) -> AIMessage:
        """Complete message, joined from all chunks; an empty message if there are no chunks."""
        if not self._chunks:
            return AIMessage("")
        message, *others = self._chunks
        if isinstance(message, AIMessageChunk):
            # Add all chunks at once: one by one takes quadratic time.
            message = message_chunk_to_message(message + others)
        assert isinstance(message, AIMessage)
        return message


def extract_thinking(reply: AIMessage) -> list[str | dict[Any, Any]]:
    """Return the reasoning blocks of a reply.

    Anthropic requires these blocks in a history that contains tool calls.
    """
    return [
        cast("dict[Any, Any]", clean_value(block))
        for block in (reply.content if isinstance(reply.content, list) else [])
        if isinstance(block, dict) and block.get("type") in ("thinking", "redacted_thinking")
    ]


def repair_transcript(messages: Sequence[BaseMessage], prompts: Prompts) -> list[BaseMessage]:
    """Return `messages` with exactly one result for every call; a valid history is not changed.

    A crashed run (of this or another framework) leaves calls without results. Providers reject such calls.
    """
    repaired_messages: list[BaseMessage] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        if isinstance(message, ToolMessage):
            continue  # results that belong to a call are added with the call below
        repaired_messages.append(message)
        if not isinstance(message, AIMessage):
            continue
        open_calls = {call["id"]: call for call in [*message.tool_calls, *message.invalid_tool_calls]}
        while place < len(messages) and isinstance(result := messages[place], ToolMessage):
            if open_calls.pop(result.tool_call_id, None) is not None:
                repaired_messages.append(result)
            place += 1
        repaired_messages += [
            ToolMessage(prompts.say("interrupted"), tool_call_id=call_id, name=call["name"], status="error")
            for call_id, call in open_calls.items()
            if call_id
        ]
    return repaired_messages

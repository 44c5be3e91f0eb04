"""Check that a message history is valid for providers, in the format that they receive."""

from __future__ import annotations

import json
from collections.abc import Sequence

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from .chat_completions import check


def assert_replayable(messages: Sequence[BaseMessage]) -> None:
    """Assert that a strict provider accepts `messages`: one result directly after each call, valid JSON."""
    payload = convert_to_openai_messages(messages)
    assert isinstance(payload, list)
    json.dumps(payload, allow_nan=False, ensure_ascii=False).encode("utf-8")
    for message in payload:
        if message["role"] == "tool":
            message.pop("name", None)  # langchain's conversion keeps the name, its clients remove it
    if payload:
        check({"model": "any", "messages": payload})
    # Some servers match results by id only, and some reject empty text.
    ids = [call["id"] for message in payload for call in message.get("tool_calls", [])]
    assert len(set(ids)) == len(ids)
    assert all(message["content"] or message.get("tool_calls") for message in payload)

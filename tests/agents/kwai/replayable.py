"""The rule that every history must keep, checked on the form that providers are sent, not on ours."""

from __future__ import annotations

import json
from collections.abc import Sequence

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from .chat_completions import check


def assert_replayable(messages: Sequence[BaseMessage]) -> None:
    """Assert that a strict provider would take `messages`: every call answered once, at once; all JSON."""
    sent = convert_to_openai_messages(messages)
    assert isinstance(sent, list)
    json.dumps(sent, allow_nan=False, ensure_ascii=False).encode("utf-8")
    for message in sent:
        if message["role"] == "tool":
            message.pop("name", None)  # langchain's own conversion leaves it, its clients do not
    if sent:
        check({"model": "any", "messages": sent})
    # Some servers find results by their ids alone, and some take no empty text.
    ids = [call["id"] for message in sent for call in message.get("tool_calls", [])]
    assert len(set(ids)) == len(ids)
    assert all(message["content"] or message.get("tool_calls") for message in sent)

"""The rule that every history must keep, checked on the form that providers are sent, not on ours."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from langchain_core.messages import BaseMessage, convert_to_openai_messages


def assert_replayable(messages: Sequence[BaseMessage]) -> None:
    """Assert that a strict provider would take `messages`: every call answered once, at once; all of it JSON in UTF-8."""
    sent = convert_to_openai_messages(messages)
    assert isinstance(sent, list)
    json.dumps(sent, allow_nan=False, ensure_ascii=False).encode("utf-8")
    waiting: list[str] = []
    used: set[str] = set()
    for message in sent:
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting
            assert message["content"]
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting, f"no result for {waiting} before the next message"
        if message["role"] != "assistant":
            continue
        calls = message.get("tool_calls", [])
        assert calls or message["content"]
        for call in calls:
            assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", call["function"]["name"])
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
            assert call["id"] not in used
            used.add(call["id"])
            waiting.append(call["id"])
    assert not waiting, f"no result for {waiting} at the end"

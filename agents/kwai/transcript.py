"""Repair message histories so that every provider accepts them: one result directly after each call."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from scrubjay.agents.language.prompts import Prompts


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

"""Message histories that every provider accepts: each call has one result, right after it."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from scrubjay.agents.language.prompts import Prompts


def mend(messages: Sequence[BaseMessage], prompts: Prompts) -> list[BaseMessage]:
    """Return `messages` with a result for every call and no other; a history in order stays as it is.

    A run that crashed, by us or another framework, leaves calls open, and providers refuse to go on from
    there.
    """
    mended: list[BaseMessage] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        if isinstance(message, ToolMessage):
            continue  # those that belong to a call are taken along with it below
        mended.append(message)
        if not isinstance(message, AIMessage):
            continue
        open_calls = {call["id"]: call for call in [*message.tool_calls, *message.invalid_tool_calls]}
        while place < len(messages) and isinstance(result := messages[place], ToolMessage):
            if open_calls.pop(result.tool_call_id, None) is not None:
                mended.append(result)
            place += 1
        mended += [
            ToolMessage(prompts.say("interrupted"), tool_call_id=call_id, name=call["name"], status="error")
            for call_id, call in open_calls.items()
            if call_id
        ]
    return mended

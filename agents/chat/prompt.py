"""From messages to the text that a model continues, by the chat template of its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from scrubjay.agents.chat.constraint import CALL_BEGIN, CALL_END

# Blocks of a message that are told elsewhere (calls) or are no part of what was said.
_SILENT_BLOCKS = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "reasoning", "thinking")


def write_prompt(
    tokenizer: Any,
    messages: Sequence[BaseMessage],
    tools: Sequence[dict[str, Any]] = (),
    instruction: str = "",
    template: str | None = None,
) -> str:
    """Return the prompt for the next answer.

    `tools` are functions in OpenAI's format: they are told by the template if it knows `<tool_call>`, else by
    a text of ours in the system message, where `instruction` goes too. A template that refuses the order of
    roles gets them merged: neighbours of one role into one message, the system's text into the first user's.

    Raises ValueError on no messages, on content that is not text, and without a template.
    """
    template = template or tokenizer.chat_template
    if not template:
        raise ValueError(
            f"{tokenizer.name_or_path or 'this tokenizer'} has no chat template, so it is not clear how to "
            "write a conversation for it; give LocalChatModel(chat_template=...), a Jinja text"
        )
    if not messages:
        raise ValueError("there are no messages to answer")
    native = CALL_BEGIN in template and "tools" in template
    marks = [mark for mark in tokenizer.all_special_tokens if len(mark) > 1]
    spoken = [_spoken(message, native, marks) for message in messages]
    if tools and not native:
        instruction = "\n\n".join(filter(None, [_tools_text(tools), instruction]))
    if instruction:
        first = spoken[0]["content"] if spoken[0]["role"] == "system" else ""
        rest = spoken[1:] if spoken[0]["role"] == "system" else spoken
        spoken = [{"role": "system", "content": "\n\n".join(filter(None, [first, instruction]))}, *rest]
    keywords = {"tools": [_described(tool) for tool in tools] if tools and native else None}
    try:
        return _apply(tokenizer, template, spoken, **keywords)
    except Exception as refusal:
        from jinja2.exceptions import TemplateError

        if not isinstance(refusal, TemplateError):
            raise
    return _apply(tokenizer, template, _merged(spoken), **keywords)


def call_text(name: str, arguments: Any) -> str:
    """Return a tool call as the model writes it."""
    called = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{CALL_BEGIN}\n{called}\n{CALL_END}"


def _apply(tokenizer: Any, template: str, spoken: list[dict[str, Any]], **keywords: Any) -> str:
    return tokenizer.apply_chat_template(
        spoken, chat_template=template, add_generation_prompt=True, tokenize=False, **keywords
    )


def _spoken(message: BaseMessage, native: bool, marks: Sequence[str]) -> dict[str, Any]:
    """Return a message as templates take it."""
    content = _unmarked(_text(message), marks)
    if isinstance(message, ToolMessage):
        if native:
            return {"role": "tool", "name": message.name or "", "content": content}
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if isinstance(message, AIMessage):
        calls = [
            {"name": call["name"], "arguments": _unmarked(call["args"], marks)} for call in message.tool_calls
        ]
        if native and calls:
            return {
                "role": "assistant",
                "content": content,
                "tool_calls": [{"type": "function", "function": call} for call in calls],
            }
        written = (call_text(**call) for call in calls)
        return {"role": "assistant", "content": content + "\n".join(written)}
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": content}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": content}
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": content}
    raise ValueError(f"cannot write a message of type {message.type!r} for the model")


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = []
    for block in message.content:
        kind = "text" if isinstance(block, str) else block.get("type")
        if kind == "text":
            texts.append(block if isinstance(block, str) else block.get("text", ""))
        elif kind not in _SILENT_BLOCKS:
            raise ValueError(
                f"a {message.type} message holds a block of type {kind!r}: this model reads text only"
            )
    return "".join(texts)


def _unmarked(said: Any, marks: Sequence[str]) -> Any:
    """Return text, or JSON of texts, with the template's marks broken: a quote must not end a turn."""
    if isinstance(said, dict):
        return {_unmarked(name, marks): _unmarked(value, marks) for name, value in said.items()}
    if isinstance(said, list):
        return [_unmarked(value, marks) for value in said]
    if isinstance(said, str):
        for mark in marks:
            # A zero-width space shows nothing, and no tokenizer takes the rest for the mark.
            said = said.replace(mark, f"{mark[0]}\u200b{mark[1:]}")
    return said


def _merged(spoken: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = "\n\n".join(message["content"] for message in spoken if message["role"] == "system")
    merged: list[dict[str, Any]] = []
    for message in spoken:
        if message["role"] == "system":
            continue
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1] = merged[-1] | {"content": f"{merged[-1]['content']}\n\n{message['content']}"}
        else:
            merged.append(message)
    if system and merged and merged[0]["role"] == "user":
        merged[0] = merged[0] | {"content": f"{system}\n\n{merged[0]['content']}"}
    elif system:
        merged.insert(0, {"role": "user", "content": system})
    return merged


def _tools_text(tools: Sequence[dict[str, Any]]) -> str:
    listed = "\n".join(json.dumps(_described(tool), ensure_ascii=False) for tool in tools)
    return (
        f"# Functions\n\nThese functions may be called:\n<tools>\n{listed}\n</tools>\n\n"
        f"A call is JSON with the function's name and its arguments, between {CALL_BEGIN} and {CALL_END}, "
        "and "
        f'nothing else:\n{CALL_BEGIN}\n{{"name": <name>, "arguments": <arguments as JSON>}}\n{CALL_END}'
    )


def _described(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {k: v for k, v in tool["function"].items() if k != "strict"}}

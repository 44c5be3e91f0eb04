"""From messages to the text that a model continues, by the chat template of its tokenizer."""

from __future__ import annotations

import json
import re
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
from scrubjay.memory.context.quotes import ControlTokens, Quotes

# Blocks of a message that are told elsewhere (calls) or are no part of what was said.
_SILENT_BLOCKS = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "reasoning", "thinking")
_ROLES = ("system", "user", "assistant", "tool")
_THOUGHT_END = "</think>"
_RESULT_BEGIN, _RESULT_END = "<tool_response>", "</tool_response>"
_TOOLS_BEGIN, _TOOLS_END = "<tools>", "</tools>"
# Marks that we write ourselves where a template does not know of tools.
_OUR_MARKS = CALL_BEGIN + CALL_END + _RESULT_BEGIN + _RESULT_END + _TOOLS_BEGIN + _TOOLS_END
# Names by which templates look into a tool's description, and the types they ask for.
_KEYWORDS = frozenset(
    [
        "type",
        "function",
        "name",
        "description",
        "parameters",
        "properties",
        "required",
        "items",
        "enum",
        "default",
        "title",
        "anyOf",
        "oneOf",
        "allOf",
        "const",
        "format",
        "nullable",
        "additionalProperties",
        "return",
        "$defs",
        "$ref",
    ]
)
_TYPES = frozenset(["function", "object", "array", "string", "integer", "number", "boolean", "null"])


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
    roles, or leaves out what the system or a user says, gets them merged: neighbours of one role into one
    message, the system's text into the first user's, which comes first even if it is empty; or in parts.
    Only the template writes control tokens: where a tokenizer would make one of what messages, tools or the
    instruction say, it is broken by a zero-width space, and so are the marks of the template's blocks. Of an
    earlier answer a template that tells thoughts apart is given what comes after them.

    Raises ValueError on no messages, on content that is not text, without a template, and with one that
    refuses the conversation, leaves part of it out or cannot be applied.
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
    quotes = Quotes(ControlTokens(tokenizer), template + _OUR_MARKS)
    spoken = [_spoken(message, native, template, quotes) for message in messages]
    told = [quotes.quote(instruction)] if instruction else []
    if tools and not native:
        told.insert(0, _tools_text(tools, quotes))
    if told:
        first = [spoken.pop(0)["content"]] if spoken[0]["role"] == "system" else []
        spoken.insert(0, {"role": "system", "content": "\n\n".join(filter(None, [*first, *told]))})
    keywords = {
        "tools": [_quoted_tool(_described(tool), quotes) for tool in tools] if tools and native else None
    }
    merged = _merged(spoken)
    refusals = []
    for turns in (spoken, merged, _in_parts(spoken), _in_parts(merged)):
        try:
            return quotes.text(_applied(tokenizer, template, turns, **keywords))
        except _Unfit as refusal:
            refusals.append(quotes.spelled(str(refusal)))
    raise ValueError(
        f"the chat template does not take this conversation: {refusals[1]}; change it, or give "
        "LocalChatModel(chat_template=...)"
    )


def call_text(name: str, arguments: Any) -> str:
    """Return a tool call as the model writes it."""
    called = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{CALL_BEGIN}\n{called}\n{CALL_END}"


class _Unfit(Exception):
    """A template does not take a conversation as it is, for this reason."""


def _applied(tokenizer: Any, template: str, spoken: list[dict[str, Any]], **keywords: Any) -> str:
    try:
        written = tokenizer.apply_chat_template(
            spoken, chat_template=template, add_generation_prompt=True, tokenize=False, **keywords
        )
    except Exception as error:  # noqa: BLE001  a template may fail in any way
        raise _Unfit(" ".join(str(error).split()) or type(error).__name__) from None
    for message in spoken:
        said = message["content"]
        said = (said if isinstance(said, str) else said[0]["text"]).strip()
        # Of answers thoughts may be cut off, and results be written as JSON.
        if message["role"] not in ("assistant", "tool") and said not in written:
            raise _Unfit(f"it leaves out what the {message['role']} says")
    return written


def _spoken(message: BaseMessage, native: bool, template: str, quotes: Quotes) -> dict[str, Any]:
    """Return a message as templates take it, what it says in code."""
    said = _text(message)
    if isinstance(message, AIMessage) and _THOUGHT_END in template:
        said = said.rpartition(_THOUGHT_END)[2].lstrip("\n")
    content = quotes.quote(said)
    if isinstance(message, ToolMessage):
        if native:
            return {"role": "tool", "name": quotes.quote(message.name or ""), "content": content}
        return {"role": "user", "content": f"{_RESULT_BEGIN}\n{content}\n{_RESULT_END}"}
    if isinstance(message, AIMessage):
        calls = [
            {"name": quotes.quote(call["name"]), "arguments": quotes.quote(call["args"])}
            for call in message.tool_calls
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
        return {"role": _role(message.role, template, quotes), "content": content}
    raise ValueError(f"cannot write a message of type {message.type!r} for the model")


def _role(role: str, template: str, quotes: Quotes) -> str:
    """Return a role as it is where the template knows it, else in code."""
    named = re.fullmatch(r"\w+", role) and re.search(rf"""['"]{role}['"]""", template)
    return role if role in _ROLES or named else quotes.quote(role)


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
    elif system or merged[0]["role"] == "assistant":
        merged.insert(0, {"role": "user", "content": system})
    return merged


def _in_parts(spoken: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as templates of models that also see take them."""
    return [message | {"content": [{"type": "text", "text": message["content"]}]} for message in spoken]


def _tools_text(tools: Sequence[dict[str, Any]], quotes: Quotes) -> str:
    listed = "\n".join(quotes.quote(json.dumps(_described(tool), ensure_ascii=False)) for tool in tools)
    return (
        f"# Functions\n\nThese functions may be called:\n{_TOOLS_BEGIN}\n{listed}\n{_TOOLS_END}\n\n"
        f"A call is JSON with the function's name and its arguments, between {CALL_BEGIN} and {CALL_END}, "
        "and "
        f'nothing else:\n{CALL_BEGIN}\n{{"name": <name>, "arguments": <arguments as JSON>}}\n{CALL_END}'
    )


def _quoted_tool(part: Any, quotes: Quotes, words: frozenset[str] = frozenset()) -> Any:
    """Return a tool's description in code, but for the words by which a template finds its way in it."""
    if isinstance(part, list):
        return [_quoted_tool(value, quotes, words) for value in part]
    if not isinstance(part, dict):
        return part if isinstance(part, str) and part in words else quotes.quote(part)
    plain = {"type": _TYPES, "required": _KEYWORDS}
    return {
        name if name in _KEYWORDS else quotes.quote(name): _quoted_tool(
            value, quotes, plain.get(name, frozenset())
        )
        for name, value in part.items()
    }


def _described(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {k: v for k, v in tool["function"].items() if k != "strict"}}

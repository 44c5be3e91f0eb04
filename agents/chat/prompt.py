"""Write messages as the prompt of a model, with the chat template of its tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
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
from scrubjay.memory.context.foreign.meter import TemplateLimitError
from scrubjay.memory.context.foreign.rendering import render_chat
from scrubjay.memory.context.quotes import ControlTokens, Quotes, select_template

_MAX_REASON = 500  # characters of an error that a template raises
# Content blocks that are not text: calls, which are written separately, and reasoning.
_SILENT_BLOCKS = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "reasoning", "thinking")
_ROLES = ("system", "user", "assistant", "tool")
_THOUGHT_END = "</think>"
_RESULT_BEGIN, _RESULT_END = "<tool_response>", "</tool_response>"
_TOOLS_BEGIN, _TOOLS_END = "<tools>", "</tools>"
# Marks that this module writes if a template does not support tools.
_OUR_MARKS = CALL_BEGIN + CALL_END + _RESULT_BEGIN + _RESULT_END + _TOOLS_BEGIN + _TOOLS_END
# Keys of a tool's description that templates look up, and values of `type` that they compare.
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
    template: str | Mapping[str, str] | None = None,
) -> str:
    """Return the prompt for the next answer.

    `tools` are functions in OpenAI's format. A template that supports `<tool_call>` describes the tools
    itself. For other templates this function describes them in the system message. `instruction` is added to
    the system message. `select_template` selects one of several templates.

    Some templates reject certain orders of roles, or leave out system or user messages. For such a template
    this function rewrites the messages. It merges consecutive messages of one role, and moves the system text
    into the first user message (a missing user message is inserted). If the template still fails, the
    function passes each content as a list of parts.

    Only the template writes control tokens. A message, a tool description or the instruction may contain a
    control token, or a string with which the template marks a block. The function inserts a zero-width space
    into each such token or string. If the template handles reasoning, earlier answers are passed to the
    template without their reasoning.

    Raises ValueError if there are no messages, if a content is not text, or if there is no template. Raises
    ValueError also if the template fails, rejects the conversation, leaves out a part of it, or takes too
    many steps (`render_chat`).
    """
    template = select_template(tokenizer, template, bool(tools))
    if not template:
        raise ValueError(
            f"{tokenizer.name_or_path or 'this tokenizer'} has no chat template; pass a Jinja template as "
            "LocalChatModel(chat_template=...)"
        )
    if not messages:
        raise ValueError("messages=[]: pass at least one message")
    native = CALL_BEGIN in template and "tools" in template
    quotes = Quotes(ControlTokens(tokenizer), template + _OUR_MARKS)
    functions = [{k: v for k, v in tool["function"].items() if k != "strict"} for tool in tools]
    tools = [{"type": "function", "function": function} for function in functions]
    turns = [_to_dict(message, native, template, quotes) for message in messages]
    extra_texts = [quotes.quote(instruction)] if instruction else []
    if tools and not native:
        extra_texts.insert(0, _tools_text(tools, quotes))
    if extra_texts:
        first = [turns.pop(0)["content"]] if turns[0]["role"] == "system" else []
        turns.insert(0, {"role": "system", "content": "\n\n".join(filter(None, [*first, *extra_texts]))})
    keywords = {"tools": [_quote_tool(tool, quotes) for tool in tools] if tools and native else None}
    merged_turns = _merge_roles(turns)
    refusals = []
    for candidate in (turns, merged_turns, _to_parts(turns), _to_parts(merged_turns)):
        try:
            return quotes.to_prompt(_apply_template(tokenizer, template, candidate, **keywords))
        except _TemplateError as refusal:
            refusals.append(quotes.decode(str(refusal)))
    raise ValueError(
        f"the chat template rejects this conversation: {refusals[1]}; change the messages, or pass another "
        "template as LocalChatModel(chat_template=...)"
    )


def call_text(name: str, arguments: Any) -> str:
    """Return a tool call in the syntax that the model generates."""
    call_json = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{CALL_BEGIN}\n{call_json}\n{CALL_END}"


class _TemplateError(Exception):
    """The template rejects or truncates the conversation; the error message is the reason."""


def _apply_template(tokenizer: Any, template: str, turns: list[dict[str, Any]], **keywords: Any) -> str:
    try:
        prompt = render_chat(tokenizer, template, turns, add_generation_prompt=True, **keywords)
    except TemplateLimitError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        cause = error.__cause__
        raise _TemplateError(" ".join(str(cause).split())[:_MAX_REASON] or type(cause).__name__) from None
    for message in turns:
        text = message["content"]
        text = (text if isinstance(text, str) else text[0]["text"]).strip()
        # Templates may remove reasoning from answers and write tool results as JSON.
        if message["role"] not in ("assistant", "tool") and text not in prompt:
            raise _TemplateError(f"the template leaves out the {message['role']} message")
    return prompt


def _to_dict(message: BaseMessage, native: bool, template: str, quotes: Quotes) -> dict[str, Any]:
    """Return a message as a dictionary for the template, with its text quoted (`Quotes.quote`)."""
    text = _text(message)
    if isinstance(message, AIMessage) and _THOUGHT_END in template:
        text = text.rpartition(_THOUGHT_END)[2].lstrip("\n")
    content = quotes.quote(text)
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
        calls_text = (call_text(**call) for call in calls)
        return {"role": "assistant", "content": content + "\n".join(calls_text)}
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": content}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": content}
    if isinstance(message, ChatMessage):
        return {"role": _role(message.role, template, quotes), "content": content}
    raise ValueError(
        f"cannot write a message of type {message.type!r} for the model; pass system, human, AI, tool or "
        "chat messages"
    )


def _role(role: str, template: str, quotes: Quotes) -> str:
    """Return a role name: unchanged if the template knows this role, else quoted (`Quotes.quote`)."""
    is_known = re.fullmatch(r"\w+", role) and re.search(rf"""['"]{re.escape(role)}['"]""", template)
    return role if role in _ROLES or is_known else quotes.quote(role)


def _text(message: BaseMessage) -> str:
    for block in message.content if isinstance(message.content, list) else ():
        kind = "text" if isinstance(block, str) else block.get("type")
        if kind not in ("text", *_SILENT_BLOCKS):
            raise ValueError(
                f"a {message.type} message has a content block of type {kind!r}; this model reads text only"
            )
    return str(message.text)


def _merge_roles(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = "\n\n".join(message["content"] for message in turns if message["role"] == "system")
    result: list[dict[str, Any]] = []
    for message in turns:
        if message["role"] == "system":
            continue
        if result and result[-1]["role"] == message["role"]:
            result[-1] = result[-1] | {"content": f"{result[-1]['content']}\n\n{message['content']}"}
        else:
            result.append(message)
    if system and result and result[0]["role"] == "user":
        result[0] = result[0] | {"content": f"{system}\n\n{result[0]['content']}"}
    elif system or result[0]["role"] == "assistant":
        result.insert(0, {"role": "user", "content": system})
    return result


def _to_parts(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose content is a list of parts, the format that templates of vision models need."""
    return [message | {"content": [{"type": "text", "text": message["content"]}]} for message in turns]


def _tools_text(tools: Sequence[dict[str, Any]], quotes: Quotes) -> str:
    tool_lines = "\n".join(quotes.quote(json.dumps(tool, ensure_ascii=False)) for tool in tools)
    return (
        f"# Functions\n\nThese functions may be called:\n{_TOOLS_BEGIN}\n{tool_lines}\n{_TOOLS_END}\n\n"
        f"A call is JSON with the function's name and its arguments, between {CALL_BEGIN} and {CALL_END}, "
        "and "
        f'nothing else:\n{CALL_BEGIN}\n{{"name": <name>, "arguments": <arguments as JSON>}}\n{CALL_END}'
    )


def _quote_tool(part: Any, quotes: Quotes, words: frozenset[str] = frozenset()) -> Any:
    """Escape control tokens in the texts of a tool's description.

    The keys and types that chat templates look up are left unchanged.
    """
    if isinstance(part, list):
        return [_quote_tool(value, quotes, words) for value in part]
    if not isinstance(part, dict):
        return part if isinstance(part, str) and part in words else quotes.quote(part)
    plain = {"type": _TYPES, "required": _KEYWORDS}
    return {
        name if name in _KEYWORDS else quotes.quote(name): _quote_tool(
            value, quotes, plain.get(name, frozenset())
        )
        for name, value in part.items()
    }

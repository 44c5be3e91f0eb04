"""Description of the tools for the model; a third party's description is marked as data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from scrubjay.agents.kwai.plans import FINISH, NOTHING
from scrubjay.agents.language.declarations import THIRD_PARTY, is_third_party
from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import clean_value
from scrubjay.agents.language.untrusted import escape_marks, fence
from scrubjay.agents.tools.annotations import as_tool

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # tool names of the MCP specification
_TEXT_KEYS = ("title", "description", "$comment")


def index_tools(
    tools: Sequence[BaseTool | Callable[..., Any]], third_party_tools: Sequence[BaseTool | Callable[..., Any]]
) -> dict[str, BaseTool]:
    """Return a dictionary of all tools by name, with a flag in the metadata of each third-party tool.

    Raises TypeError if an item is not a tool or function. Raises ValueError if a function has no docstring,
    or if a name is reserved or used twice. The name of a third-party tool may contain only letters, digits
    and `_.-`; another name raises ValueError.
    """
    for name, items in (("tools", tools), ("third_party_tools", third_party_tools)):
        if isinstance(items, str) or not isinstance(items, Collection):
            raise TypeError(f"{name}={items!r}: pass a list of tools and functions")
        for one in items:
            if not callable(one) and not isinstance(one, BaseTool):
                raise TypeError(f"{name} contains {one!r}; pass functions or langchain tools")
    tools_by_name: dict[str, BaseTool] = {}
    for index, item in enumerate([*tools, *third_party_tools]):
        one = as_tool(item)
        if index >= len(tools):
            one = one.model_copy(update={"metadata": {**(one.metadata or {}), THIRD_PARTY: True}})
        if one.name in tools_by_name or one.name in (FINISH, NOTHING):
            raise ValueError(f"tool {one.name!r}: this name is already used or reserved; rename the tool")
        if is_third_party(one) and not _NAME.fullmatch(one.name):
            raise ValueError(
                f"tool {one.name!r}: the name of a third-party tool may contain only letters, digits and "
                "_.-; rename the tool"
            )
        tools_by_name[one.name] = one
    return tools_by_name


def prepare_for_binding(tool: BaseTool, prompts: Prompts) -> BaseTool | dict[str, Any]:
    """Return a tool for `bind_tools`.

    A third-party tool becomes a dict. Marks around its description label the description as data.
    """
    if not is_third_party(tool):
        return tool
    function: Any = clean_value(convert_to_openai_tool(tool)["function"])
    pending = [function.get("parameters")]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            for key in _TEXT_KEYS:
                if isinstance(part.get(key), str):
                    part[key] = escape_marks(part[key])
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    description = fence(function.get("description", ""), f"foreign tool {tool.name}", "tool", prompts)
    return {"type": "function", "function": {**function, "description": description}}


def format_tools(tools: Sequence[BaseTool], prompts: Prompts) -> str:
    """Return tools as text, one JSON object per line.

    Third-party tools come last, between marks that label their descriptions as data.
    """
    own_tools, third_party_tools = [], []
    for tool in tools:
        (third_party_tools if is_third_party(tool) else own_tools).append(
            convert_to_openai_tool(tool)["function"]
        )
    for name, meaning in ((FINISH, "finish_tool"), (NOTHING, "nothing_tool")):
        own_tools.append({"name": name, "description": prompts.say(meaning), "parameters": {}})
    lines = _lines(own_tools)
    if not third_party_tools:
        return lines
    names = ", ".join(function["name"] for function in third_party_tools)
    return f"{lines}\n{fence(_lines(third_party_tools), f'foreign tools {names}', 'tool', prompts)}"


def _lines(functions: Sequence[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)

"""What the model is told of the tools; what strangers say of theirs is data, between marks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from scrubjay.agents.kwai.plans import FINISH, NOTHING
from scrubjay.agents.language.declarations import FOREIGN, is_foreign
from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import clean_value
from scrubjay.agents.language.untrusted import fence, without_marks
from scrubjay.agents.tools.declared import as_tool

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # as the protocol of MCP has them
_TOLD = ("title", "description", "$comment")


def by_name(
    tools: Sequence[BaseTool | Callable[..., Any]], foreign: Sequence[BaseTool | Callable[..., Any]]
) -> dict[str, BaseTool]:
    """Return tools by their names, the `foreign` ones marked so.

    Raises TypeError on what is no tool, ValueError on a function without a docstring and on a name that is
    taken, or that a stranger made up of other than letters, digits and `_.-`.
    """
    for name, given in (("tools", tools), ("foreign_tools", foreign)):
        if isinstance(given, str) or not isinstance(given, Collection):
            raise TypeError(f"{name}={given!r}: pass a list of tools and functions")
        for one in given:
            if not callable(one) and not isinstance(one, BaseTool):
                raise TypeError(f"{name} holds {one!r}: pass functions or tools of langchain")
    known: dict[str, BaseTool] = {}
    for place, given in enumerate([*tools, *foreign]):
        one = as_tool(given)
        if place >= len(tools):
            one = one.model_copy(update={"metadata": {**(one.metadata or {}), FOREIGN: True}})
        if one.name in known or one.name in (FINISH, NOTHING):
            raise ValueError(f"tool {one.name!r}: the name is taken; give it another one")
        if is_foreign(one) and not _NAME.fullmatch(one.name):
            raise ValueError(
                f"tool {one.name!r}: the name of a foreign tool has letters, digits and _.- alone; give it "
                "another one"
            )
        known[one.name] = one
    return known


def to_bind(tool: BaseTool, prompts: Prompts) -> BaseTool | dict[str, Any]:
    """Return what a model that calls tools itself is given: a tool, or of a foreign one what may be told."""
    if not is_foreign(tool):
        return tool
    function: Any = clean_value(convert_to_openai_tool(tool)["function"])
    waiting = [function.get("parameters")]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            for key in _TOLD:
                if isinstance(part.get(key), str):
                    part[key] = without_marks(part[key])
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    told = fence(function.get("description", ""), f"foreign tool {tool.name}", "tool", prompts)
    return {"type": "function", "function": {**function, "description": told}}


def as_lines(tools: Sequence[BaseTool], prompts: Prompts) -> str:
    """Return tools as text, a JSON object a line; foreign ones after the others, between marks."""
    ours, theirs = [], []
    for tool in tools:
        (theirs if is_foreign(tool) else ours).append(convert_to_openai_tool(tool)["function"])
    for name, meaning in ((FINISH, "finish_tool"), (NOTHING, "nothing_tool")):
        ours.append({"name": name, "description": prompts.say(meaning), "parameters": {}})
    lines = _lines(ours)
    if not theirs:
        return lines
    names = ", ".join(function["name"] for function in theirs)
    return f"{lines}\n{fence(_lines(theirs), f'foreign tools {names}', 'tool', prompts)}"


def _lines(functions: Sequence[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)

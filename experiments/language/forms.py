"""The forms in which agents' prompts ask for the next step, by KAgentBench's names, read and written.

A plan is one thought, one tool, its arguments. What cannot be read is a plan without a tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_THINK = re.compile(r"<\|startofthink\|>(.+?)<\|endofthink\|>", re.DOTALL)
_LONGEST_REPAIRED = 8_000


@dataclass(frozen=True)
class Plan:
    """The next step."""

    thought: str = ""
    """Why, or what it is to find out."""
    tool: str | None = None
    """Name of the tool; None for none."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """By name."""


def read_form(form: str, text: str, functions: Sequence[Mapping[str, Any]] = ()) -> Plan:
    """Return the plan in a reply.

    `functions` name ReACT's only argument. Raises ValueError on an unknown form.
    """
    readers = {
        "react": lambda: _read_react(text, functions),
        "autogpt": lambda: _read_json(text, ("thoughts", "text")),
        "toolllama": lambda: _read_toolllama(text),
        "modelscope": lambda: _read_modelscope(text),
        "kuaiagent": lambda: _read_json(text, ("task_name",)),
    }
    if form.lower() not in readers:
        raise ValueError(
            f"prompt template {form!r}; there are ReACT, AutoGPT, ToolLlama, ModelScope, KuaiAgent"
        )
    return readers[form.lower()]()


def write_form(form: str, plan: Plan) -> str:
    """Return a plan as a reply.

    Raises ValueError on a form that cannot say it: ReACT has room for one argument.
    """
    arguments = json.dumps(plan.arguments, ensure_ascii=False)
    if form == "ToolLlama":
        return f"Thought: {plan.thought}\nAction: {plan.tool}\nAction Input: {arguments}"
    if form == "ModelScope":
        called = {"api_name": plan.tool, "parameters": plan.arguments}
        return f"{plan.thought}\n<|startofthink|>{json.dumps(called, ensure_ascii=False)}<|endofthink|>"
    command = {"name": plan.tool, "args": plan.arguments}
    if form == "AutoGPT":
        return json.dumps({"thoughts": {"text": plan.thought}, "command": command}, ensure_ascii=False)
    if form == "KuaiAgent":
        return json.dumps({"task_name": plan.thought, "command": command}, ensure_ascii=False)
    raise ValueError(f"form={form!r}; plans are written as AutoGPT, ToolLlama, ModelScope, KuaiAgent")


def read_answer(form: str, text: str) -> str:
    """Return the answer in a concluding reply: AutoGPT and ToolLlama wrap it in a call."""
    if form.lower() == "autogpt":
        if "web_search(" in text:
            return ""
        _, wrapped, answer = text.partition('response="')
        return answer.replace('")', "") if wrapped else text
    if form.lower() == "toolllama":
        _, wrapped, answer = text.partition('"final_answer": "')
        return answer.replace('"', "").replace("}", "") if wrapped else text.strip("\n") and text
    return text


def _read_react(text: str, functions: Sequence[Mapping[str, Any]]) -> Plan:
    # As KAgentBench has it, the word "Thought:" is part of the thought.
    thought = re.split("Final Answer|Action", text, maxsplit=1)[0].strip()
    action = re.search(r"Action:(.+?)Action Input:(.*?)(?:Observation|\Z)", text, re.DOTALL)
    if action is None:
        return Plan(thought)
    tool, given = action[1].strip(), action[2].strip()
    names = next((list(_properties(known)) for known in functions if known.get("name") == tool), [])
    return Plan(thought, tool or None, {names[0]: given} if names and given else {})


def _read_toolllama(text: str) -> Plan:
    thought = re.search(r"Thought:(.+?)(?:\Z|Action)", text, re.DOTALL)
    tool = re.search(r"Action:(.+?)(?:Action Input:|\Z)", text, re.DOTALL)
    given = re.search(r"Action Input:(.+?)(?:Thought|\Z)", text, re.DOTALL)
    return Plan(
        thought[1].strip() if thought else "",
        (tool[1].strip() or None) if tool else None,
        _object(given[1]) if tool and given else {},
    )


def _read_modelscope(text: str) -> Plan:
    called = _THINK.search(text)
    if called is None:
        return Plan()
    value = _object(called[1])
    # KAgentBench reads no thought here, and so gives no points for one.
    return _plan("", value.get("api_name"), value.get("parameters"))


def _read_json(text: str, thought_at: Sequence[str]) -> Plan:
    value: Any = _object(text)
    command = value.get("command")
    command = command if isinstance(command, dict) else {}
    for name in thought_at:
        value = value.get(name) if isinstance(value, dict) else None
    return _plan(value, command.get("name"), command.get("args"))


def _plan(thought: Any, tool: Any, arguments: Any) -> Plan:
    return Plan(
        thought if isinstance(thought, str) else "",
        tool if isinstance(tool, str) and tool else None,
        arguments if isinstance(arguments, dict) else {},
    )


def _properties(function: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def _object(text: str) -> dict[str, Any]:
    """Return the first JSON object in `text`, mended if it is broken; an empty one if there is none."""
    start = text.find("{")
    if start < 0:
        return {}
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        from json_repair import loads

        try:
            value = loads(text[start : start + _LONGEST_REPAIRED])
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}

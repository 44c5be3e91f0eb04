"""Parsers and writers for the output formats of agent plans, named as in KAgentBench.

A plan is a thought, a tool and its arguments. Text that cannot be parsed gives a plan without a tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_THINK = re.compile(r"<\|startofthink\|>(.+?)<\|endofthink\|>", re.DOTALL)
_MAX_REPAIRED_LENGTH = 8_000


@dataclass(frozen=True)
class StepPlan:
    """Next step of an agent."""

    thought: str = ""
    """Reason for the step, or the information that the step looks for."""
    tool: str | None = None
    """Name of the tool; None for no tool."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the tool by name."""


def parse_plan(form: str, text: str, functions: Sequence[Mapping[str, Any]] = ()) -> StepPlan:
    """Parse the plan in a reply.

    A ReACT plan has one argument, without a name. Its name comes from the tool's schema in `functions`.
    Raises ValueError on an unknown format.
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
            f"unknown prompt template {form!r}; choose from ReACT, AutoGPT, ToolLlama, ModelScope, KuaiAgent"
        )
    return readers[form.lower()]()


def format_plan(form: str, plan: StepPlan) -> str:
    """Format a plan as a reply.

    Raises ValueError unless `form` is AutoGPT, ToolLlama, ModelScope or KuaiAgent. ReACT is not supported
    here, because it allows only one argument.
    """
    arguments = json.dumps(plan.arguments, ensure_ascii=False)
    if form == "ToolLlama":
        return f"Thought: {plan.thought}\nAction: {plan.tool}\nAction Input: {arguments}"
    if form == "ModelScope":
        call = {"api_name": plan.tool, "parameters": plan.arguments}
        return f"{plan.thought}\n<|startofthink|>{json.dumps(call, ensure_ascii=False)}<|endofthink|>"
    command = {"name": plan.tool, "args": plan.arguments}
    if form == "AutoGPT":
        return json.dumps({"thoughts": {"text": plan.thought}, "command": command}, ensure_ascii=False)
    if form == "KuaiAgent":
        return json.dumps({"task_name": plan.thought, "command": command}, ensure_ascii=False)
    raise ValueError(f"form={form!r}: choose from AutoGPT, ToolLlama, ModelScope, KuaiAgent")


def read_answer(form: str, text: str) -> str:
    """Return the answer in a concluding reply; AutoGPT and ToolLlama replies hold it in a tool call."""
    if form.lower() == "autogpt":
        if "web_search(" in text:
            return ""
        _, marker, answer = text.partition('response="')
        return answer.replace('")', "") if marker else text
    if form.lower() == "toolllama":
        _, marker, answer = text.partition('"final_answer": "')
        return answer.replace('"', "").replace("}", "") if marker else text.strip("\n") and text
    return text


def _read_react(text: str, functions: Sequence[Mapping[str, Any]]) -> StepPlan:
    # As in KAgentBench, the word "Thought:" is part of the thought.
    thought = re.split("Final Answer|Action", text, maxsplit=1)[0].strip()
    action = re.search(r"Action:(.+?)Action Input:(.*?)(?:Observation|\Z)", text, re.DOTALL)
    if action is None:
        return StepPlan(thought)
    tool, argument = action[1].strip(), action[2].strip()
    names = next((list(_properties(function)) for function in functions if function.get("name") == tool), [])
    return StepPlan(thought, tool or None, {names[0]: argument} if names and argument else {})


def _read_toolllama(text: str) -> StepPlan:
    thought = re.search(r"Thought:(.+?)(?:\Z|Action)", text, re.DOTALL)
    tool = re.search(r"Action:(.+?)(?:Action Input:|\Z)", text, re.DOTALL)
    arguments = re.search(r"Action Input:(.+?)(?:Thought|\Z)", text, re.DOTALL)
    return StepPlan(
        thought[1].strip() if thought else "",
        (tool[1].strip() or None) if tool else None,
        _object(arguments[1]) if tool and arguments else {},
    )


def _read_modelscope(text: str) -> StepPlan:
    match = _THINK.search(text)
    if match is None:
        return StepPlan()
    value = _object(match[1])
    # KAgentBench reads no thought in this format, and so scores none.
    return _plan("", value.get("api_name"), value.get("parameters"))


def _read_json(text: str, thought_at: Sequence[str]) -> StepPlan:
    value: Any = _object(text)
    command = value.get("command")
    command = command if isinstance(command, dict) else {}
    for name in thought_at:
        value = value.get(name) if isinstance(value, dict) else None
    return _plan(value, command.get("name"), command.get("args"))


def _plan(thought: Any, tool: Any, arguments: Any) -> StepPlan:
    return StepPlan(
        thought if isinstance(thought, str) else "",
        tool if isinstance(tool, str) and tool else None,
        arguments if isinstance(arguments, dict) else {},
    )


def _properties(function: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def _object(text: str) -> dict[str, Any]:
    """Return the first JSON object in `text`, repaired if malformed, or {} if `text` has no object."""
    start = text.find("{")
    if start < 0:
        return {}
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        from json_repair import loads

        try:
            value = loads(text[start : start + _MAX_REPAIRED_LENGTH])
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}

"""Plan the next task with a model that supports tool calls or writes its plan as JSON.

The plan is the first of these parts that a reply contains: calls that the provider parsed, calls that the
provider could not parse, JSON in the text, damaged JSON in the text. The planner repairs damaged JSON. If the
plan is unreadable, the planner requests one corrected reply from the model. If the corrected reply is
unreadable as well, planning ends and the agent writes the answer.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.tool import tool_call
from langchain_core.runnables import Runnable

from scrubjay.agents.kwai.context import PromptBuilder
from scrubjay.agents.kwai.messages import extract_text, extract_thinking, is_cut_off
from scrubjay.agents.kwai.runner import AskModel, Effect
from scrubjay.agents.kwai.turn import Call, Turn
from scrubjay.agents.language.prompts import LocalizedError
from scrubjay.agents.language.text import clean, clean_value, iterate_objects

_log = logging.getLogger(__name__)
_MAX_REPAIR_LENGTH = 8_000
_MAX_OBJECTS = 20


@dataclass(frozen=True)
class Decision:
    """Decision of the planner on the next task."""

    calls: tuple[Call, ...]
    """Call of the next task, followed by the other calls of the reply, which are postponed.

    The tuple is empty if no task is left or if `unreadable` is True.
    """
    task_name: str
    """Goal of the task."""
    parse_methods: tuple[str, ...]
    """Outcome of each attempt to parse a reply.

    A failed attempt is `unreadable: REASON`. A successful attempt is the name of its method, such as `json`.
    """
    message: AIMessage | None = None
    """Message for the history: the call, or the text of the reply."""
    unreadable: bool = False
    """True if all attempts to parse the reply failed."""


class Planner:
    """Planner of one task at a time."""

    def __init__(
        self, model: Runnable[Any, Any], names: Collection[str], native: bool, context: PromptBuilder
    ) -> None:
        self._model, self._names, self._native, self._context = model, names, native, context

    def prompt(self, turn: Turn) -> list[BaseMessage]:
        """Return the planning prompt. Raises ValueError if the question does not fit the token budget."""
        return self._context.build_planning_prompt(turn, self._native)

    def decide(self, turn: Turn) -> Generator[Effect, Any, Decision]:
        """Ask the model for the next task, with one retry if the reply is unreadable."""
        prompt = self.prompt(turn)
        attempts: list[str] = []
        for _ in range(2):
            reply: AIMessage = yield AskModel(self._model, prompt)
            turn.record_reply(prompt, reply)
            try:
                return self._read(reply, attempts)
            except PlanError as error:
                attempts.append(f"unreadable: {error}")
                prompts = self._context.prompts
                correction = prompts.say("reask", error=error.phrase.render(prompts))
                # Send the reply back as text: a call without a result would be an invalid history.
                prompt = [*prompt, AIMessage(extract_text(reply) or "…"), HumanMessage(correction)]
        return Decision((), "", tuple(attempts), unreadable=True)

    def _read(self, reply: AIMessage, attempts: list[str]) -> Decision:
        cut = is_cut_off(reply)
        if cut and (reply.tool_calls or reply.invalid_tool_calls):
            # Even if the call is valid JSON: an argument, such as a mail's text or a path, may be incomplete.
            raise PlanError("plan_cut")
        if reply.tool_calls:
            calls = [Call(clean(call["name"]), check_arguments(call["args"])) for call in reply.tool_calls]
            return self._decision(reply, calls, "", [*attempts, "tool_calls"])
        if reply.invalid_tool_calls:
            calls = [
                Call(clean(str(call["name"] or "")), read_arguments(call["args"]))
                for call in reply.invalid_tool_calls
            ]
            return self._decision(reply, calls, "", [*attempts, "invalid_tool_calls"])
        try:
            plan = read_plan(extract_text(reply))
        except PlanError:
            if not self._native:
                raise
        else:
            # Small models may write a native call as text; any other JSON is an answer.
            if not self._native or plan.call.finishes or plan.call.name in self._names:
                if cut and plan.parse_method == "repaired":
                    raise PlanError("plan_cut")
                return self._decision(reply, [plan.call], plan.task_name, [*attempts, plan.parse_method])
        return Decision((), "", (*attempts, "text"), build_message(reply, [], extract_text(reply).strip()))

    def _decision(self, reply: AIMessage, calls: list[Call], task_name: str, attempts: list[str]) -> Decision:
        if calls[0].finishes:
            return Decision((), "", tuple(attempts))
        task_name = task_name or extract_text(reply).strip()
        message = build_message(reply, calls, task_name)
        return Decision(tuple(calls), task_name or calls[0].name, tuple(attempts), message)


def build_message(reply: AIMessage, calls: list[Call], text: str) -> AIMessage:
    """Return the reply as a message for the history, with call ids and tool names that providers accept."""
    thoughts = extract_thinking(reply) if calls else []
    return AIMessage(
        content=[*thoughts, *([{"type": "text", "text": text}] if text else [])] if thoughts else text,
        tool_calls=[tool_call(name=call.safe_name, args=call.arguments, id=call.id) for call in calls],
        usage_metadata=reply.usage_metadata,
        response_metadata=reply.response_metadata,
        id=reply.id,
    )


class PlanError(LocalizedError, ValueError):
    """The text contains no valid plan; the error message tells the model the reason."""


@dataclass(frozen=True)
class TaskPlan:
    """Plan of one task."""

    task_name: str
    """Goal of the task."""
    call: Call
    """Call of the tool."""
    parse_method: str
    """Method by which the plan was parsed: json, prose or repaired."""


def read_plan(text: str) -> TaskPlan:
    """Return the plan in `text`. Raises PlanError if there is none.

    The format is `{"task_name": ..., "command": {"name": ..., "args": {...}}}`, as in KwaiAgents. `text` may
    also contain only the object of `command`. `args` may be called `arguments`. If `text` contains a list of
    objects, the first object is the plan.
    """
    problem = PlanError("plan_no_object")
    for parse_method, value in _candidates(text):
        try:
            return _as_plan(value, parse_method)
        except PlanError as error:
            problem = error
    raise problem


def read_arguments(text: object) -> dict[str, Any]:
    """Return the arguments in `text`, after a repair of its JSON. Raises PlanError if the repair fails."""
    if isinstance(text, str):
        for _, value in _candidates(text):
            if isinstance(value, dict):
                return check_arguments(value)
    raise PlanError("plan_no_arguments")


def check_arguments(arguments: object) -> dict[str, Any]:
    """Return `arguments` with cleaned strings. Raises PlanError if `arguments` is not a JSON object."""
    if not isinstance(arguments, dict):
        raise PlanError("plan_arguments_type", kind=type(arguments).__name__)
    try:
        result = json.loads(json.dumps(clean_value(arguments), allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise PlanError("plan_arguments_value") from None
    return result


def _candidates(text: str) -> Iterator[tuple[str, Any]]:
    """Yield a (parse method, value) pair for each possible plan in `text`, the most likely plan first."""
    try:
        yield "json", json.loads(text)
        return
    except (ValueError, RecursionError):
        pass
    text = text[:_MAX_REPAIR_LENGTH]  # the following methods take quadratic time
    has_failed = False
    for value in iterate_objects(text, _MAX_OBJECTS):
        if value is None:
            has_failed = True
        # After an invalid object this one may be a part of it; repairing the whole is better than using a
        # part.
        elif not has_failed or "command" in value:
            yield "prose", value
    first = text.find("{")
    if first >= 0 and (loads := _load_repair()) is not None:
        try:
            yield "repaired", loads(text[first:])
        except (ValueError, RecursionError):
            return


@functools.cache
def _load_repair() -> Callable[[str], Any] | None:
    """Return the function that repairs JSON. Without its package log a warning once and return None."""
    try:
        from json_repair import loads  # the import takes 0.1 s; do it only if needed
    except ModuleNotFoundError:
        _log.warning("damaged JSON of the model is not repaired: pip install 'scrubjay[agent]'")
        return None
    return loads


def _as_plan(value: Any, parse_method: str) -> TaskPlan:
    if isinstance(value, list):
        value = next((item for item in value if isinstance(item, dict)), None)
    if not isinstance(value, dict):
        raise PlanError("plan_no_object")
    command = value.get("command", value)
    if isinstance(command, str):
        command = {"name": command, "args": value.get("args", {})}
    if not isinstance(command, dict):
        raise PlanError("plan_command_type")
    name = command.get("name")
    if not isinstance(name, str) or not name.strip():
        raise PlanError("plan_no_name")
    arguments = command.get("args", command.get("arguments", {}))
    if isinstance(arguments, str):
        arguments = read_arguments(arguments) if arguments.strip() else {}
    task_name = value.get("task_name")
    call = Call(clean(name.strip()), check_arguments(arguments if arguments is not None else {}))
    return TaskPlan(
        clean(task_name) if isinstance(task_name, str) and task_name else call.name, call, parse_method
    )

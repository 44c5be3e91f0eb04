"""Parse plans from a model's text: strict JSON, then JSON objects in prose, then repaired JSON."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from scrubjay.agents.language.prompts import LocalizedError
from scrubjay.agents.language.text import clean, clean_value, iterate_objects

FINISH = "task_complete"
NOTHING = "do_nothing"
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_REPAIR_LENGTH = 8_000
_MAX_OBJECTS = 20


class PlanError(LocalizedError, ValueError):
    """The text contains no valid plan; the error message tells the model the reason."""


@dataclass(frozen=True)
class Call:
    """Call of a tool."""

    name: str
    """Name of the tool as the model wrote it."""
    arguments: dict[str, Any]
    """Arguments as a JSON object."""
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex}")
    """Id that links the call to its result."""

    @property
    def safe_name(self) -> str:
        """Tool name without characters that providers reject in a message history."""
        return _UNSAFE.sub("_", self.name)[:64].strip("_") or "unnamed"


@dataclass(frozen=True)
class TaskPlan:
    """Plan of one task."""

    task_name: str
    """Goal of the task."""
    call: Call
    """Call of the tool."""
    parse_method: str
    """Method by which the plan was parsed: json, prose or repaired."""

    @property
    def finishes(self) -> bool:
        """True if the plan says that no task is left."""
        return self.call.name in (FINISH, NOTHING)


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
    if first >= 0:
        from json_repair import loads  # the import takes 0.1 s; do it only if needed

        try:
            yield "repaired", loads(text[first:])
        except (ValueError, RecursionError):
            return


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

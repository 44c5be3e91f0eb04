"""A plan, read from what a model wrote: strict JSON, then the first object in prose, then repair."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from scrubjay.agents.language.prompts import Told
from scrubjay.agents.language.text import clean, clean_value

FINISH = "task_complete"
NOTHING = "do_nothing"
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_REPAIRED = 8_000
_OBJECTS_TRIED = 20


class PlanError(Told, ValueError):
    """The text holds no plan; the model is told what is wrong, to correct it."""


@dataclass(frozen=True)
class Call:
    """A tool to run."""

    name: str
    """Name of the tool, as the model wrote it."""
    arguments: dict[str, Any]
    """A JSON object."""
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex}")
    """Links the call to its result."""

    @property
    def safe_name(self) -> str:
        """The name with nothing in it that a provider would refuse in a history."""
        return _UNSAFE.sub("_", self.name)[:64].strip("_") or "unnamed"


@dataclass(frozen=True)
class Plan:
    """One task."""

    task_name: str
    """What it is to find out."""
    call: Call
    """How."""
    rung: str
    """How it was read: json, prose or repaired."""

    @property
    def finishes(self) -> bool:
        """Whether it says that nothing more is to be done."""
        return self.call.name in (FINISH, NOTHING)


def read_plan(text: str) -> Plan:
    """Return the plan in `text`. Raises PlanError if there is none.

    KwaiAgents' form, `{"task_name": ..., "command": {"name": ..., "args": {...}}}`; `command` may be the
    whole object, `args` may be called `arguments`, and the first object of a list counts.
    """
    problem = PlanError("plan_no_object")
    for rung, value in _candidates(text):
        try:
            return _as_plan(value, rung)
        except PlanError as error:
            problem = error
    raise problem


def read_arguments(text: object) -> dict[str, Any]:
    """Return the arguments that `text`, which did not parse, was meant to be. Raises PlanError."""
    if isinstance(text, str):
        for _, value in _candidates(text):
            if isinstance(value, dict):
                return check_arguments(value)
    raise PlanError("plan_no_arguments")


def check_arguments(arguments: object) -> dict[str, Any]:
    """Return `arguments` with clean strings. Raises PlanError unless they are a JSON object."""
    if not isinstance(arguments, dict):
        raise PlanError("plan_arguments_type", kind=type(arguments).__name__)
    try:
        cleaned = json.loads(json.dumps(clean_value(arguments), allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise PlanError("plan_arguments_value") from None
    return cleaned


def _candidates(text: str) -> Iterator[tuple[str, Any]]:
    """Yield what may be the plan, the likeliest first."""
    try:
        yield "json", json.loads(text)
        return
    except (ValueError, RecursionError):
        pass
    text = text[:_LONGEST_REPAIRED]  # what follows takes time that grows with the square of the length
    decoder, place = json.JSONDecoder(), text.find("{")
    first, failed = place, False
    for _ in range(_OBJECTS_TRIED):
        if place < 0:
            break
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            failed, place = True, text.find("{", place + 1)
            continue
        # After a broken object, this one may be a part of it: repair does better than to take a part for the
        # plan.
        if not failed or "command" in value:
            yield "prose", value
        place = text.find("{", end)
    if first >= 0:
        from json_repair import loads  # 0.1 s, and only ever for a model that needs it

        try:
            yield "repaired", loads(text[first:])
        except (ValueError, RecursionError):
            return


def _as_plan(value: Any, rung: str) -> Plan:
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
    return Plan(clean(task_name) if isinstance(task_name, str) and task_name else call.name, call, rung)

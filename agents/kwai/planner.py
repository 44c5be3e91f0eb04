"""The next task, from a model that calls tools itself or from one that writes its plan as JSON.

Each reply goes down a ladder until a rung holds: calls the provider parsed, calls it could not parse, JSON in
the text, JSON repaired, one request to correct it. What no rung holds ends the planning, not the turn.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import Runnable

from scrubjay.agents.kwai.context import Context
from scrubjay.agents.kwai.effects import AskModel, Effect
from scrubjay.agents.kwai.plans import (
    FINISH,
    NOTHING,
    Call,
    PlanError,
    check_arguments,
    read_arguments,
    read_plan,
)
from scrubjay.agents.kwai.replies import said, thinking, was_cut
from scrubjay.agents.kwai.turn import Turn
from scrubjay.agents.language.text import clean


@dataclass(frozen=True)
class Decision:
    """What the planner wants."""

    calls: tuple[Call, ...]
    """The first is the task; others came with it and wait. None: the work is finished."""
    task_name: str
    """What the task is to find out."""
    rungs: tuple[str, ...]
    """The attempts at reading it, the last one held, unless `unreadable`."""
    message: AIMessage | None = None
    """What goes into the history: the call, or text in its place."""
    unreadable: bool = False
    """Whether no attempt held."""


class Planner:
    """Plans one task a time."""

    def __init__(
        self, model: Runnable[Any, Any], names: Collection[str], native: bool, context: Context
    ) -> None:
        self._model, self._names, self._native, self._context = model, names, native, context

    def prompt(self, turn: Turn) -> list[BaseMessage]:
        """Return what the model is asked. Raises ValueError if the question does not fit."""
        return self._context.to_plan(turn, self._native)

    def decide(self, turn: Turn) -> Generator[Effect, Any, Decision]:
        """Ask for the next task, at most twice."""
        prompt = self.prompt(turn)
        rungs: list[str] = []
        for _ in range(2):
            reply: AIMessage = yield AskModel(self._model, prompt)
            turn.meter.spend(prompt, reply)
            try:
                return self._read(reply, rungs)
            except PlanError as error:
                rungs.append(f"unreadable: {error}")
                prompts = self._context.prompts
                correction = prompts.say("reask", error=error.phrase.said(prompts))
                # As text: a call without a result must not be sent back.
                prompt = [*prompt, AIMessage(said(reply) or "…"), HumanMessage(correction)]
        return Decision((), "", tuple(rungs), unreadable=True)

    def _read(self, reply: AIMessage, rungs: list[str]) -> Decision:
        cut = was_cut(reply)
        if cut and (reply.tool_calls or reply.invalid_tool_calls):
            # However valid it looks: what is missing of a mail's text, or of a path, was meant too.
            raise PlanError("plan_cut")
        if reply.tool_calls:
            calls = [Call(clean(call["name"]), check_arguments(call["args"])) for call in reply.tool_calls]
            return self._decision(reply, calls, "", [*rungs, "tool_calls"])
        if reply.invalid_tool_calls:
            calls = [
                Call(clean(str(call["name"] or "")), read_arguments(call["args"]))
                for call in reply.invalid_tool_calls
            ]
            return self._decision(reply, calls, "", [*rungs, "invalid_tool_calls"])
        try:
            plan = read_plan(said(reply))
        except PlanError:
            if not self._native:
                raise
        else:
            # Small models write the call they mean as text; any other JSON in place of a native call is an
            # answer.
            if not self._native or plan.finishes or plan.call.name in self._names:
                if cut and plan.rung == "repaired":
                    raise PlanError("plan_cut")
                return self._decision(reply, [plan.call], plan.task_name, [*rungs, plan.rung])
        return Decision((), "", (*rungs, "text"), _recorded(reply, [], said(reply).strip()))

    def _decision(self, reply: AIMessage, calls: list[Call], task_name: str, rungs: list[str]) -> Decision:
        if calls[0].name in (FINISH, NOTHING):
            return Decision((), "", tuple(rungs))
        task_name = task_name or said(reply).strip()
        message = _recorded(reply, calls, task_name)
        return Decision(tuple(calls), task_name or calls[0].name, tuple(rungs), message)


def _recorded(reply: AIMessage, calls: list[Call], text: str) -> AIMessage:
    """Return the reply as history keeps it: every call with an id and a name that providers accept."""
    thoughts = thinking(reply) if calls else []
    return AIMessage(
        content=[*thoughts, *([{"type": "text", "text": text}] if text else [])] if thoughts else text,
        tool_calls=[
            {
                "name": call.safe_name,
                "args": call.arguments,
                "id": call.id,
                "type": "tool_call",
            }
            for call in calls
        ],
        usage_metadata=reply.usage_metadata,
        response_metadata=reply.response_metadata,
        id=reply.id,
    )

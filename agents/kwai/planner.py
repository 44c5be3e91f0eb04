"""Plan the next task with a model that supports tool calls or writes its plan as JSON.

The plan is the first of these parts that a reply contains: calls that the provider parsed, calls that the
provider could not parse, JSON in the text, damaged JSON in the text. The planner repairs damaged JSON. If the
plan is unreadable, the planner requests one corrected reply from the model. If the corrected reply is
unreadable as well, planning ends and the agent writes the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import Runnable

from scrubjay.agents.kwai.context import PromptBuilder
from scrubjay.agents.kwai.messages import extract_text, extract_thinking, is_cut_off
from scrubjay.agents.kwai.plans import (
    FINISH,
    NOTHING,
    Call,
    PlanError,
    check_arguments,
    read_arguments,
    read_plan,
)
from scrubjay.agents.kwai.runner import AskModel, Effect
from scrubjay.agents.kwai.turn import Turn
from scrubjay.agents.language.text import clean


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
            turn.meter.record_usage(prompt, reply)
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
            if not self._native or plan.finishes or plan.call.name in self._names:
                if cut and plan.parse_method == "repaired":
                    raise PlanError("plan_cut")
                return self._decision(reply, [plan.call], plan.task_name, [*attempts, plan.parse_method])
        return Decision((), "", (*attempts, "text"), _build_message(reply, [], extract_text(reply).strip()))

    def _decision(self, reply: AIMessage, calls: list[Call], task_name: str, attempts: list[str]) -> Decision:
        if calls[0].name in (FINISH, NOTHING):
            return Decision((), "", tuple(attempts))
        task_name = task_name or extract_text(reply).strip()
        message = _build_message(reply, calls, task_name)
        return Decision(tuple(calls), task_name or calls[0].name, tuple(attempts), message)


def _build_message(reply: AIMessage, calls: list[Call], text: str) -> AIMessage:
    """Return the reply as a message for the history, with call ids and tool names that providers accept."""
    thoughts = extract_thinking(reply) if calls else []
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

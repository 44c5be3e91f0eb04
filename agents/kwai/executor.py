"""Run planned calls; every call gets a ToolMessage with a result, or with the reason why it was not run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, ToolException
from pydantic import ValidationError
from pydantic.v1 import ValidationError as OldValidationError

from scrubjay.agents.kwai.limits import Limits
from scrubjay.agents.kwai.plans import Call
from scrubjay.agents.kwai.runner import Effect, RunFunction, RunTool, ToolTimeoutError
from scrubjay.agents.kwai.turn import Turn
from scrubjay.agents.language.declarations import is_trusted
from scrubjay.agents.language.gate import Gate, find_objection
from scrubjay.agents.language.namespaces import MissingValueError
from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import clean, fence, find_sources, truncate_text
from scrubjay.agents.tools.base import describe_faults


@dataclass(frozen=True)
class Observation:
    """Outcome of a tool call."""

    text: str
    """Result, or the reason why there is no result.

    The text is truncated to `Limits.result_tokens` tokens. It does not contain the marks that label it as
    data in a prompt."""
    status: Literal["success", "error"]
    trusted: bool = True
    """True if no third party could influence the text."""
    has_run: bool = False
    """True if the tool was started."""
    is_blocked: bool = False
    """True if the call needed approval after untrusted text was read, but got none; it was not run."""
    sources: tuple[str, ...] = ()
    artifact: Any = None


class Executor:
    """Executor of one tool call at a time, within the limits."""

    def __init__(
        self,
        tools: Mapping[str, BaseTool],
        prompts: Prompts,
        limits: Limits,
        count_tokens: Callable[[str], int],
        approve: Callable[[Call], bool] | None,
    ) -> None:
        self._tools, self._prompts, self._limits = tools, prompts, limits
        self._count_tokens, self._approve = count_tokens, approve
        self._gates = {name: Gate(tool) for name, tool in tools.items()}

    def run(self, call: Call, turn: Turn, step: int) -> Generator[Effect, Any, Observation]:
        """Run `call` unless a limit, a repetition or missing approval prevents it."""
        say, tool = self._prompts.say, self._tools.get(call.name)
        if tool is None:
            names = ", ".join(self._tools)
            return Observation(say("unknown_tool", tool=call.name, tools=names), "error")
        earlier = turn.meter.find_repeat(call.name, call.arguments)
        if earlier is not None:
            return Observation(say("repeated", tool=call.name, step=earlier), "error")
        if not turn.meter.seconds_left():
            return Observation(say("too_late", tool=call.name), "error")
        reason = self._objection(tool, call, turn)
        if reason:
            approve = self._approve
            # Only True approves: an unawaited coroutine is truthy.
            if approve is None or (yield RunFunction(lambda: approve(call))) is not True:
                return Observation(say(reason, tool=call.name), "error", is_blocked=True)
        turn.meter.record_tool_call(call.name, call.arguments, step)
        seconds = turn.meter.seconds_for_a_tool()
        try:
            output = yield RunTool(tool, call, seconds, turn.is_tainted)
        except ToolTimeoutError:
            return Observation(
                say("timed_out", tool=call.name, seconds=f"{seconds:g}"), "error", has_run=True
            )
        except (
            MissingValueError
        ):  # a namespace template lacks a value: an error of the caller, not of the tool
            raise
        except Exception as error:  # noqa: BLE001  reported to the planner
            return self._failure(tool, call, error)
        return self._success(tool, call, output)

    def build_message(self, call: Call, observation: Observation) -> ToolMessage:
        """Return the result as a message for the history; marks around a tool's text label it as data."""
        text = observation.text
        if observation.has_run:
            source = " ".join([call.name, *observation.sources])
            trust = "trusted tool" if observation.trusted else "tool"
            text = fence(text, source, trust, self._prompts)
        return ToolMessage(
            text,
            tool_call_id=call.id,
            name=call.safe_name,
            status=observation.status,
            artifact=observation.artifact,
        )

    def build_postponed_message(self, call: Call) -> ToolMessage:
        """Return the message for a call that is not run because the same reply has an earlier call."""
        return ToolMessage(
            self._prompts.say("postponed"), tool_call_id=call.id, name=call.safe_name, status="error"
        )

    def _objection(self, tool: BaseTool, call: Call, turn: Turn) -> str | None:
        """Return the reason why a call needs approval; None if the call needs no approval."""
        if not turn.is_tainted:
            return None
        return find_objection(tool, self._gates[call.name], call.arguments, turn.allowed_addresses)

    def _failure(self, tool: BaseTool, call: Call, error: Exception) -> Observation:
        if isinstance(error, ValidationError | OldValidationError):
            text = self._prompts.say(
                "bad_arguments", tool=call.name, error=describe_faults(error, self._prompts)
            )
        else:
            reason = str(error) if isinstance(error, ToolException) else f"{type(error).__name__}: {error}"
            text = self._prompts.say("tool_failed", tool=call.name, error=clean(reason))
        # An error is as untrusted as a result: it may quote a server's response.
        return Observation(self._cut(text), "error", is_trusted(tool), has_run=True)

    def _success(self, tool: BaseTool, call: Call, output: Any) -> Observation:
        artifact, status = None, "success"
        if isinstance(output, ToolMessage):
            artifact, status, text = output.artifact, output.status, output.text
        else:
            text = str(output)
        text = clean(text).strip()
        sources = find_sources(call.arguments, artifact)
        trusted = is_trusted(tool)
        return Observation(self._cut(text), status, trusted, True, sources=sources, artifact=artifact)

    def _cut(self, text: str) -> str:
        return truncate_text(text, self._limits.result_tokens, self._count_tokens, self._prompts)

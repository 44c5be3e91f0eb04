"""Runs a planned call, or says why not: always, the call gets its ToolMessage and the planner a reason."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, ToolException

from scrubjay.agents.kwai.effects import Do, Effect, RunTool, ToolTimeoutError
from scrubjay.agents.kwai.limits import Limits
from scrubjay.agents.kwai.plans import Call
from scrubjay.agents.kwai.turn import Turn
from scrubjay.agents.language.declarations import is_trusted
from scrubjay.agents.language.gate import Gate, objection
from scrubjay.agents.language.namespaces import MissingValueError
from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import clean
from scrubjay.agents.language.untrusted import cut, fence, sources_of
from scrubjay.agents.tools.faults import describe_faults


@dataclass(frozen=True)
class Observation:
    """What came of a call."""

    text: str
    """The result, or why there is none; cut to the limit, without marks."""
    status: Literal["success", "error"]
    trusted: bool = True
    """Whether nobody outside could have worded it."""
    ran: bool = False
    """Whether the tool was started."""
    blocked: bool = False
    """Whether it was not because text from outside may have asked for it."""
    sources: tuple[str, ...] = ()
    artifact: Any = None


class Executor:
    """Runs one call at a time, within the limits."""

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
        """Run `call`, unless a limit, a repetition or missing approval is in the way."""
        say, tool = self._prompts.say, self._tools.get(call.name)
        if tool is None:
            names = ", ".join(self._tools)
            return Observation(say("unknown_tool", tool=call.name, tools=names), "error")
        earlier = turn.meter.repeats(call.name, call.arguments)
        if earlier is not None:
            return Observation(say("repeated", tool=call.name, step=earlier), "error")
        if not turn.meter.seconds_left():
            return Observation(say("too_late", tool=call.name), "error")
        objection = self._objection(tool, call, turn)
        if objection:
            approve = self._approve
            # Nothing but True: a coroutine that nobody awaits is no yes.
            if approve is None or (yield Do(lambda: approve(call))) is not True:
                return Observation(say(objection, tool=call.name), "error", blocked=True)
        turn.meter.ran(call.name, call.arguments, step)
        seconds = turn.meter.seconds_for_a_tool()
        try:
            returned = yield RunTool(tool, call, seconds, turn.tainted)
        except ToolTimeoutError:
            return Observation(say("timed_out", tool=call.name, seconds=f"{seconds:g}"), "error", ran=True)
        except MissingValueError:  # of a namespace: the caller's mistake, not the tool's
            raise
        except Exception as error:  # noqa: BLE001  the planner is told
            return self._failure(tool, call, error)
        return self._success(tool, call, returned)

    def message(self, call: Call, observation: Observation) -> ToolMessage:
        """Return the result as history keeps it, outside text between marks."""
        text = observation.text
        if observation.ran:
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

    def postponed(self, call: Call) -> ToolMessage:
        """Return the answer to a call that came with another one."""
        return ToolMessage(
            self._prompts.say("postponed"), tool_call_id=call.id, name=call.safe_name, status="error"
        )

    def _objection(self, tool: BaseTool, call: Call, turn: Turn) -> str | None:
        """Return why a call needs approval: text from outside was read, which may have asked for it."""
        if not turn.tainted:
            return None
        return objection(tool, self._gates[call.name], call.arguments, turn.given)

    def _failure(self, tool: BaseTool, call: Call, error: Exception) -> Observation:
        if _is_validation_error(error):
            text = self._prompts.say(
                "bad_arguments", tool=call.name, error=describe_faults(error, self._prompts)
            )
        else:
            reason = str(error) if isinstance(error, ToolException) else f"{type(error).__name__}: {error}"
            text = self._prompts.say("tool_failed", tool=call.name, error=clean(reason))
        # Even an error may quote what a server sent.
        return Observation(self._cut(text), "error", is_trusted(tool), ran=True)

    def _success(self, tool: BaseTool, call: Call, returned: Any) -> Observation:
        artifact, status = None, "success"
        if isinstance(returned, ToolMessage):
            artifact, status, text = returned.artifact, returned.status, returned.text
        else:
            text = str(returned)
        text = clean(text).strip()
        sources = sources_of(call.arguments, artifact)
        trusted = is_trusted(tool)
        return Observation(self._cut(text), status, trusted, True, sources=sources, artifact=artifact)

    def _cut(self, text: str) -> str:
        return cut(text, self._limits.result_tokens, self._count_tokens, self._prompts)


def _is_validation_error(error: Exception) -> bool:
    from pydantic import ValidationError
    from pydantic.v1 import ValidationError as OldValidationError

    return isinstance(error, ValidationError | OldValidationError)

"""Run planned calls; every call gets a ToolMessage with a result, or with the reason why it was not run."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, ToolException
from pydantic import ValidationError
from pydantic.v1 import ValidationError as OldValidationError

from scrubjay.agents.kwai.limits import Limits
from scrubjay.agents.kwai.planner import Decision
from scrubjay.agents.kwai.runner import Effect, RunFunction, RunTool, ToolTimeoutError
from scrubjay.agents.kwai.turn import Call, Step, Turn
from scrubjay.agents.language.declarations import is_trusted
from scrubjay.agents.language.gate import Gate, find_objection
from scrubjay.agents.language.namespaces import MissingValueError
from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import clean, find_dropped_blocks, find_sources, truncate_text
from scrubjay.agents.tools.base import describe_faults

_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


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

    def run(self, decision: Decision, turn: Turn) -> Generator[Effect, Any, Step]:
        """Run the decision's call unless a limit, a repetition or missing approval prevents it."""
        call, index, say = decision.calls[0], len(turn.steps) + 1, self._prompts.say
        make_step = partial(
            Step,
            index,
            decision.task_name,
            call.name,
            call.arguments,
            call.id,
            parse_methods=decision.parse_methods,
        )
        tool = self._tools.get(call.name)
        if tool is None:
            names = ", ".join(self._tools)
            return make_step(say("unknown_tool", tool=call.name, tools=names), "error")
        earlier = turn.meter.find_repeat(call.name, call.arguments)
        if earlier is not None:
            return make_step(say("repeated", tool=call.name, step=earlier), "error")
        if not turn.meter.seconds_left():
            return make_step(say("too_late", tool=call.name), "error")
        reason = None
        if turn.is_tainted:
            gate = self._gates[call.name]
            reason = find_objection(tool, gate, call.arguments, turn.allowed_addresses)
        if reason:
            approve = self._approve
            # Only True approves: an unawaited coroutine is truthy.
            if approve is None or (yield RunFunction(lambda: approve(call))) is not True:
                return make_step(say(reason, tool=call.name), "error", is_blocked=True)
        turn.meter.record_tool_call(call.name, call.arguments, index)
        seconds = min(self._limits.tool_seconds, turn.meter.seconds_left())
        try:
            output = yield RunTool(tool, call, seconds, turn.is_tainted)
        except ToolTimeoutError:
            text = say("timed_out", tool=call.name, seconds=f"{seconds:g}")
            return make_step(text, "error", has_run=True)
        except MissingValueError:
            raise  # a namespace template lacks a value: an error of the caller, not of the tool
        except Exception as error:  # noqa: BLE001  reported to the planner
            # An error is as untrusted as a result: it may quote a server's response.
            text, cut_characters = self._cut(self._describe(call, error))
            return make_step(
                text, "error", cut_characters=cut_characters, trusted=is_trusted(tool), has_run=True
            )
        artifact, status, blocks = None, "success", ()
        if isinstance(output, ToolMessage):
            blocks = find_dropped_blocks(output.content)
            artifact, status, output = output.artifact, output.status, output.text
        # Keep the indentation of the first line.
        text, cut_characters = self._cut(_BLANK_LINES.sub("", clean(str(output)).rstrip()))
        if blocks:
            text = f"{text}\n{say('dropped', blocks=', '.join(blocks))}".lstrip("\n")
        return make_step(
            text,
            status,
            cut_characters=cut_characters,
            dropped_blocks=blocks,
            trusted=is_trusted(tool),
            sources=find_sources(call.arguments, artifact),
            artifact=artifact,
            has_run=True,
        )

    def _describe(self, call: Call, error: Exception) -> str:
        if isinstance(error, ValidationError | OldValidationError):
            faults = describe_faults(error, self._prompts)
            return self._prompts.say("bad_arguments", tool=call.name, error=faults)
        reason = str(error) if isinstance(error, ToolException) else f"{type(error).__name__}: {error}"
        return self._prompts.say("tool_failed", tool=call.name, error=clean(reason))

    def _cut(self, text: str) -> tuple[str, int]:
        return truncate_text(text, self._limits.result_tokens, self._count_tokens, self._prompts)

"""Specification of a tool: a plain function and its description in two languages.

A tool is a function `run(context, **arguments) -> ToolResult`. A frozen `ToolSpec` describes this function,
and `build` makes a langchain tool of the specification. Every failure becomes a sentence for the planner,
never a stack trace or an empty result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from langchain_core.tools import StructuredTool, ToolException
from pydantic import ConfigDict, Field, ValidationError, create_model

from scrubjay.agents.language.prompts import LocalizedError, Prompts, load_prompts
from scrubjay.agents.tools.base import (
    Language,
    Replay,
    ToolResult,
    ToolUnavailable,
    UnreachableError,
    describe_faults,
)
from scrubjay.agents.tools.web import Web


class Bilingual(NamedTuple):
    """Text in English and in Chinese."""

    en: str
    zh: str

    def say(self, language: Language) -> str:
        """Return the English or the Chinese text, according to `language`."""
        return self.zh if language == "zh" else self.en


@dataclass(frozen=True)
class ToolContext:
    """Environment of a tool call: language, clock, network and replay."""

    language: Language
    """Language of outputs."""
    clock: Callable[[], datetime]
    """Function that returns the current time with a time zone."""
    web: Web
    """HTTP client; tools that fetch pages must use it for all requests."""
    offline: bool = False
    """True if the network must not be used."""
    replay: Replay | None = None
    """Recorded answers, which are written while the network works and read while there is no network."""

    def say(self, en: str, zh: str) -> str:
        """Return the text in the language of this context, English or Chinese."""
        return zh if self.language == "zh" else en

    @property
    def prompts(self) -> Prompts:
        """Prompts in the language of this context, for messages about failed calls."""
        return load_prompts(self.language)


@dataclass(frozen=True)
class Argument:
    """Argument of a tool."""

    name: str
    """Name, the same in all languages."""
    kind: Any
    """Python type."""
    description: Bilingual
    """Meaning of the argument, for the model."""
    default: Any = ...
    """Default value; `...` if the argument is required."""
    address: bool = False
    """True if the argument is a web address that the tool requests.

    After untrusted text was read, an address that only the model wrote is refused."""


@dataclass(frozen=True)
class ToolSpec:
    """Specification of a tool. A context with a language, a clock and a network client turns it into a
    tool."""

    name: str
    """Name in tool calls; ASCII, since providers require it."""
    zh_name: str
    """Chinese name, by which the tool can also be selected."""
    description: Bilingual
    """Purpose of the tool, for the model."""
    run: Callable[..., ToolResult]
    """Function `run(context, **arguments)`.

    The function raises ToolArgumentError on bad arguments, and UnreachableError without network."""
    side_effect: bool
    """True if the tool changes the outside world."""
    arguments: tuple[Argument, ...] = ()
    """Arguments in the order of the call."""
    network: bool = False
    """True if the tool needs the network. The results of such a tool are untrusted."""
    packages: tuple[str, ...] = ()
    """Packages that must be installed."""


def build(spec: ToolSpec, context: ToolContext) -> StructuredTool:
    """Return the langchain tool of `spec`.

    The tool's `metadata` declares side effects, untrusted output, address arguments and required packages.
    The artifact of a result has the keys `urls`, `data` and `recorded` (date of a recorded answer; None for
    a live answer). Failures are returned to the planner as a ToolMessage with status "error".
    """
    fields: dict[str, Any] = {
        argument.name: (
            argument.kind,
            Field(default=argument.default, description=argument.description.say(context.language)),
        )
        for argument in spec.arguments
    }
    schema = create_model(f"{spec.name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)

    def call(**arguments: Any) -> tuple[str, dict[str, Any]]:
        answer = _answer(spec, context, arguments)
        text = answer.text
        if answer.recorded_on:
            text = context.say("[recorded on {}] ", "[记录于 {}] ").format(answer.recorded_on) + text
        return text, {"urls": list(answer.urls), "data": answer.data, "recorded": answer.recorded_on}

    return StructuredTool(
        name=spec.name,
        description=spec.description.say(context.language),
        args_schema=schema,
        func=call,
        response_format="content_and_artifact",
        handle_tool_error=str,
        handle_validation_error=lambda error: _describe(spec, error, context),
        metadata={
            "side_effect": spec.side_effect,
            "untrusted": spec.network,
            "addresses": [argument.name for argument in spec.arguments if argument.address],
            "zh_name": spec.zh_name,
            "packages": spec.packages,
        },
    )


def _answer(spec: ToolSpec, context: ToolContext, arguments: dict[str, Any]) -> ToolResult:
    """Run the tool or return a recorded answer; all errors become ToolException or ToolUnavailable."""
    recording, prompts = context.replay if spec.network else None, context.prompts
    try:
        if spec.network and context.offline:
            raise UnreachableError("set_offline")
        answer = spec.run(context, **arguments)
    except UnreachableError as error:
        recorded_answer = (
            recording.find(spec.name, context.language, arguments) if recording is not None else None
        )
        if recorded_answer:
            return recorded_answer
        cause, hint = error.phrase.render(prompts), prompts.say("hint_other_tool")
        raise ToolUnavailable(spec.name, cause, hint, error.offline, context.language) from error
    except ImportError as error:
        cause = prompts.say("package_missing", package=error.name or error)
        hint = 'pip install "scrubjay[agent]"'
        raise ToolUnavailable(spec.name, cause, hint, offline=False, language=context.language) from error
    except ToolException:
        raise
    except ValueError as error:
        message = error.phrase.render(prompts) if isinstance(error, LocalizedError) else str(error)
        raise ToolException(prompts.say("tool_error", tool=spec.name, error=message)) from error
    except Exception as error:  # a library failed on unforeseen input: report it to the planner and continue
        message = f"{type(error).__name__}: {error}"
        raise ToolException(prompts.say("tool_failed", tool=spec.name, error=message)) from error
    if recording is not None:
        try:
            recording.add(spec.name, context.language, arguments, answer, context.clock().date())
        except OSError as error:  # the answer is valid without a recording
            warnings.warn(
                f"{recording.path}: the answer of {spec.name} was not recorded ({error})", stacklevel=2
            )
    return answer


def _describe(spec: ToolSpec, error: Any, context: ToolContext) -> str:
    prompts = context.prompts
    if not isinstance(error, ValidationError):
        return prompts.say("tool_error", tool=spec.name, error=error)
    names = ", ".join(argument.name + ("" if argument.default is ... else "?") for argument in spec.arguments)
    return prompts.say("called_wrongly", tool=spec.name, faults=describe_faults(error, prompts), names=names)

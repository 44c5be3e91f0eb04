"""Specification of a tool: a plain function and its description in two languages.

A tool is a function `run(context, **arguments) -> ToolResult`. A frozen `ToolSpec` describes this function,
and `build` makes a langchain tool of the specification. Every failure becomes a sentence for the planner,
never a stack trace or an empty result.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

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
class ToolSpec:
    """Specification of a tool. A context with a language, a clock and a network client turns it into a
    tool."""

    name: str
    """Name in tool calls; ASCII, since providers require it."""
    zh_name: str
    """Chinese name, by which the tool can also be selected."""
    description: tuple[str, str]
    """Purpose of the tool, for the model, in English and in Chinese."""
    run: Callable[..., ToolResult]
    """Function `run(context, **arguments)`; its signature has the types and defaults of the arguments.

    The function raises ToolArgumentError on bad arguments, and UnreachableError without network."""
    side_effect: bool
    """True if the tool changes the outside world."""
    arguments: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Meaning of each argument of `run`, for the model, in English and in Chinese."""
    addresses: tuple[str, ...] = ()
    """Names of the arguments that are web addresses, which the tool requests.

    After untrusted text was read, an address that only the model wrote is refused."""
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
    _, *parameters = inspect.signature(spec.run, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        parameter.name: (
            parameter.annotation,
            Field(
                default=... if parameter.default is parameter.empty else parameter.default,
                description=context.say(*spec.arguments[parameter.name]),
            ),
        )
        for parameter in parameters
    }
    schema = create_model(f"{spec.name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)

    def call(**arguments: Any) -> tuple[str, dict[str, Any]]:
        answer = _answer(spec, context, arguments)
        text = answer.text
        if answer.recorded_on:
            text = context.say("[recorded on {}] ", "[记录于 {}] ").format(answer.recorded_on) + text
        return text, {"urls": list(answer.urls), "data": answer.data, "recorded": answer.recorded_on}

    def describe(error: Any) -> str:
        prompts = context.prompts
        if not isinstance(error, ValidationError):
            return prompts.say("tool_error", tool=spec.name, error=error)
        names = ", ".join(
            name + ("" if field.is_required() else "?") for name, field in schema.model_fields.items()
        )
        faults = describe_faults(error, prompts)
        return prompts.say("called_wrongly", tool=spec.name, faults=faults, names=names)

    return StructuredTool(
        name=spec.name,
        description=context.say(*spec.description),
        args_schema=schema,
        func=call,
        response_format="content_and_artifact",
        handle_tool_error=str,
        handle_validation_error=describe,
        metadata={
            "side_effect": spec.side_effect,
            "untrusted": spec.network,
            "addresses": list(spec.addresses),
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

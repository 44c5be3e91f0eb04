"""Tools before they are tools: a plain function and its description in two languages.

A tool is a function `run(around, **arguments) -> Answer`, described by a frozen `ToolSpec`; `build` makes a
langchain tool of it. What goes wrong becomes a sentence for the planner: never a stack trace, never an empty
result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from langchain_core.tools import StructuredTool, ToolException
from pydantic import ConfigDict, Field, ValidationError, create_model

from scrubjay.agents.language.prompts import Prompts, Told, load_prompts
from scrubjay.agents.tools.base import Answer, Language, ToolUnavailable, Unreachable
from scrubjay.agents.tools.faults import describe_faults
from scrubjay.agents.tools.replay import Replay
from scrubjay.agents.tools.web import Web


class Bilingual(NamedTuple):
    """The same text in English and in Chinese."""

    en: str
    zh: str

    def say(self, language: Language) -> str:
        """Return the text in that language."""
        return self.zh if language == "zh" else self.en


@dataclass(frozen=True)
class Around:
    """What a tool may know besides its arguments."""

    language: Language
    """Language of outputs."""
    clock: Callable[[], datetime]
    """Returns the present moment, with its time zone."""
    web: Web
    """The only way to the network for tools that fetch by themselves."""
    offline: bool = False
    """No network may be used."""
    replay: Replay | None = None
    """Recorded answers, written when online, read when there is no network."""

    def say(self, en: str, zh: str) -> str:
        """Return the one text or the other, by language."""
        return zh if self.language == "zh" else en

    @property
    def prompts(self) -> Prompts:
        """What is said of a call that fails."""
        return load_prompts(self.language)


@dataclass(frozen=True)
class Argument:
    """One argument of a tool."""

    name: str
    """Its name, the same in all languages."""
    kind: Any
    """Its type."""
    about: Bilingual
    """What it means, for the model."""
    default: Any = ...
    """`...` if it must be given."""
    address: bool = False
    """It is an address, which the tool asks for: after text from outside, one that somebody gave."""


@dataclass(frozen=True)
class ToolSpec:
    """A tool before it is made for a language, a clock and a network."""

    name: str
    """The name a model calls it by: ASCII, as providers demand."""
    zh_name: str
    """Its Chinese name, by which it may be chosen too."""
    about: Bilingual
    """What it does, for the model."""
    run: Callable[..., Answer]
    """`run(around, **arguments)`; raises Mistaken on bad arguments and Unreachable without network."""
    side_effect: bool
    """It changes things outside."""
    arguments: tuple[Argument, ...] = ()
    """In the order of the call."""
    network: bool = False
    """It needs the network, and what it returns was written by strangers."""
    packages: tuple[str, ...] = ()
    """What must be installed for it to answer."""


def build(spec: ToolSpec, around: Around) -> StructuredTool:
    """Return the langchain tool of `spec`.

    Its `metadata` says whether it has side effects, whether its output is untrusted, which arguments are
    addresses, and which packages it needs; its artifact is `{"urls", "data", "recorded"}`. Failures are
    returned to the planner as a ToolMessage with status "error".
    """
    fields: dict[str, Any] = {
        argument.name: (
            argument.kind,
            Field(default=argument.default, description=argument.about.say(around.language)),
        )
        for argument in spec.arguments
    }
    schema = create_model(f"{spec.name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)

    def call(**arguments: Any) -> tuple[str, dict[str, Any]]:
        answer = _answer(spec, around, arguments)
        text = answer.text
        if answer.recorded:
            text = around.say("[recorded on {}] ", "[记录于 {}] ").format(answer.recorded) + text
        return text, {"urls": list(answer.urls), "data": answer.data, "recorded": answer.recorded}

    return StructuredTool(
        name=spec.name,
        description=spec.about.say(around.language),
        args_schema=schema,
        func=call,
        response_format="content_and_artifact",
        handle_tool_error=str,
        handle_validation_error=lambda error: _describe(spec, error, around),
        metadata={
            "side_effect": spec.side_effect,
            "untrusted": spec.network,
            "addresses": [argument.name for argument in spec.arguments if argument.address],
            "zh_name": spec.zh_name,
            "packages": spec.packages,
        },
    )


def _answer(spec: ToolSpec, around: Around, arguments: dict[str, Any]) -> Answer:
    """Run the tool, or give what was recorded; raises ToolException or ToolUnavailable, nothing else."""
    recording, prompts = around.replay if spec.network else None, around.prompts
    try:
        if spec.network and around.offline:
            raise Unreachable("set_offline")
        answer = spec.run(around, **arguments)
    except Unreachable as error:
        recorded = recording.find(spec.name, around.language, arguments) if recording is not None else None
        if recorded:
            return recorded
        cause, hint = error.phrase.said(prompts), prompts.say("hint_other_tool")
        raise ToolUnavailable(spec.name, cause, hint, error.offline, around.language) from error
    except ImportError as error:
        cause = prompts.say("package_missing", package=error.name or error)
        hint = 'pip install "scrubjay[agent]"'
        raise ToolUnavailable(spec.name, cause, hint, offline=False, language=around.language) from error
    except ToolException:
        raise
    except ValueError as error:
        said = error.phrase.said(prompts) if isinstance(error, Told) else str(error)
        raise ToolException(prompts.say("tool_error", tool=spec.name, error=said)) from error
    except Exception as error:  # of a library, on input nobody foresaw: the planner must see it and go on
        said = f"{type(error).__name__}: {error}"
        raise ToolException(prompts.say("tool_failed", tool=spec.name, error=said)) from error
    if recording is not None:
        try:
            recording.add(spec.name, around.language, arguments, answer, around.clock().date())
        except OSError as error:  # the answer is there all the same
            warnings.warn(
                f"{recording.path}: the answer of {spec.name} was not recorded ({error})", stacklevel=2
            )
    return answer


def _describe(spec: ToolSpec, error: Any, around: Around) -> str:
    prompts = around.prompts
    if not isinstance(error, ValidationError):
        return prompts.say("tool_error", tool=spec.name, error=error)
    names = ", ".join(argument.name + ("" if argument.default is ... else "?") for argument in spec.arguments)
    return prompts.say("called_wrongly", tool=spec.name, faults=describe_faults(error, prompts), names=names)

"""Describe the validation errors of a tool call, one per argument."""

from __future__ import annotations

from typing import Any

from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import clean


def describe_faults(error: Any, prompts: Prompts) -> str:
    """Describe the faults that pydantic's `error` contains, in the language of `prompts`.

    A rare fault has no template in `prompts`. Its description is pydantic's message in English.
    """
    faults = []
    for fault in error.errors():
        name, message = f"fault_{fault['type']}", fault["msg"]
        if name in prompts.names:
            context = fault.get("ctx", {})
            message = prompts.say(
                name, **{placeholder: context[placeholder] for placeholder in prompts.placeholders(name)}
            )
        faults.append(f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {message}")
    return clean("; ".join(faults))

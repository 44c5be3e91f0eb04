"""What is wrong with the arguments of a call, argument by argument."""

from __future__ import annotations

from typing import Any

from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import clean


def describe_faults(error: Any, prompts: Prompts) -> str:
    """Return what pydantic's `error` says in the language of `prompts`; rare faults in its own English."""
    faults = []
    for fault in error.errors():
        name, said = f"fault_{fault['type']}", fault["msg"]
        if name in prompts.names:
            context = fault.get("ctx", {})
            said = prompts.say(name, **{asked: context[asked] for asked in prompts.asks_for(name)})
        faults.append(f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {said}")
    return clean("; ".join(faults))

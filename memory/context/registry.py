"""Names of context policies: one line per policy, and the contract suite runs on every one of them."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from scrubjay.memory.context.base import ContextPolicy
from scrubjay.memory.context.chunks import ChunksPolicy
from scrubjay.memory.context.full import FullPolicy
from scrubjay.memory.context.h2o import H2OPolicy
from scrubjay.memory.context.recycled import RecycledPolicy
from scrubjay.memory.context.sinks import SinksPolicy
from scrubjay.memory.context.snapkv import SnapKVPolicy
from scrubjay.memory.context.window import WindowPolicy

_POLICIES: dict[str, type[ContextPolicy]] = {
    "chunks": ChunksPolicy,
    "full": FullPolicy,
    "h2o": H2OPolicy,
    "recycled": RecycledPolicy,
    "sinks": SinksPolicy,
    "snapkv": SnapKVPolicy,
    "window": WindowPolicy,
}


def register(name: str, policy_class: type[ContextPolicy]) -> None:
    """Add a policy of your own under `name`. Raises ValueError if the name is taken."""
    if name in _POLICIES:
        raise ValueError(
            f"policy {name!r} is already registered as {_POLICIES[name].__name__}; choose another name"
        )
    _POLICIES[name] = policy_class


def list_policies() -> list[str]:
    """Return the names of all registered policies."""
    return sorted(_POLICIES)


def make(name: str, **fields: Any) -> ContextPolicy:
    """Return the named policy, defaults where `fields` is silent: `make("sinks", budget=256)`.

    Raises ValueError on an unknown name, field or size, naming the choices.
    """
    if name not in _POLICIES:
        close = difflib.get_close_matches(name, _POLICIES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown policy {name!r}; choose from {', '.join(list_policies())}{hint}")
    known = [field.name for field in dataclasses.fields(_POLICIES[name])]  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(
            f"policy {name!r} has no field {', '.join(unknown)}; its fields are {', '.join(known) or 'none'}"
        )
    return _POLICIES[name](**fields)


def name_of(policy: ContextPolicy) -> str:
    """Return the name a policy is registered under. Raises ValueError if it is not."""
    for name, policy_class in _POLICIES.items():
        if type(policy) is policy_class:
            return name
    raise ValueError(
        f"{type(policy).__name__} is not registered; call scrubjay.memory.context.register first"
    )

"""Names of context policies: one line per policy, and the contract suite runs on every one of them."""

from __future__ import annotations

from typing import Any

from scrubjay.memory.context.policies.base import ContextPolicy
from scrubjay.memory.context.policies.chunks import ChunksPolicy
from scrubjay.memory.context.policies.full import FullPolicy
from scrubjay.memory.context.policies.h2o import H2OPolicy
from scrubjay.memory.context.policies.recycled import RecycledPolicy
from scrubjay.memory.context.policies.sinks import SinksPolicy
from scrubjay.memory.context.policies.snapkv import SnapKVPolicy
from scrubjay.memory.context.policies.window import WindowPolicy
from scrubjay.memory.named import Registry

_POLICIES: Registry[ContextPolicy] = Registry(
    "policy",
    "scrubjay.memory.context.register",
    {
        "chunks": ChunksPolicy,
        "full": FullPolicy,
        "h2o": H2OPolicy,
        "recycled": RecycledPolicy,
        "sinks": SinksPolicy,
        "snapkv": SnapKVPolicy,
        "window": WindowPolicy,
    },
)


def register(name: str, policy_class: type[ContextPolicy]) -> None:
    """Add a policy of your own under `name`. Raises ValueError if the name is taken."""
    _POLICIES.register(name, policy_class)


def list_policies() -> list[str]:
    """Return the names of all registered policies."""
    return _POLICIES.names()


def make(name: str, **fields: Any) -> ContextPolicy:
    """Return the named policy, defaults where `fields` is silent: `make("sinks", budget=256)`.

    Raises ValueError on an unknown name, field or size, naming the choices.
    """
    return _POLICIES.configure(name, **fields)


def name_of(policy: ContextPolicy) -> str:
    """Return the name a policy is registered under. Raises ValueError if it is not."""
    return _POLICIES.name_of(policy)

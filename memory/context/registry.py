"""Registry of context policies by name. The contract tests run on every registered policy."""

from __future__ import annotations

import functools
import logging
from typing import Any

from scrubjay.memory.config_registry import Registry
from scrubjay.memory.context.policies.base import ContextPolicy

_log = logging.getLogger(__name__)

_CLASSES = {
    "adakv": "scored.adakv:AdaKVPolicy",
    "cake": "scored.cake:CAKEPolicy",
    "chunks": "chunks:ChunksPolicy",
    "duo": "scored.duo:DuoPolicy",
    "expected_attention": "scored.expected_attention:ExpectedAttentionPolicy",
    "flexprefill": "flexprefill:FlexPrefillPolicy",
    "full": "full:FullPolicy",
    "h2o": "h2o:H2OPolicy",
    "hip": "chunk_presets:HiPPolicy",
    "keydiff": "scored.keydiff:KeyDiffPolicy",
    "kvzap": "scored.kvzap:KVzapPolicy",
    "kvzip": "scored.kvzip:KVzipPolicy",
    "longheads": "chunk_presets:LongHeadsPolicy",
    "pyramidkv": "scored.pyramidkv:PyramidKVPolicy",
    "quest": "chunk_presets:QuestPolicy",
    "recycled": "recycled:RecycledPolicy",
    "refreshkv": "recycled:RefreshKVPolicy",
    "sinks": "sinks:SinksPolicy",
    "snapkv": "scored.snapkv:SnapKVPolicy",
    "task_kv": "scored.task_kv:TaskKVPolicy",
    "tova": "scored.tova:TOVAPolicy",
    "window": "sinks:WindowPolicy",
    "zipvl": "scored.zipvl:ZipVLPolicy",
}
"""Class of each policy in the folder `policies`. It is imported at the first use of its name."""

_POLICIES: Registry[ContextPolicy] = Registry(
    "policy",
    "scrubjay.memory.context.register",
    {name: f"scrubjay.memory.context.policies.{place}" for name, place in _CLASSES.items()},
)


def register(name: str, policy_class: type[ContextPolicy]) -> None:
    """Add a policy of your own under `name`.

    Raises:
        ValueError: If the name is taken.
    """
    _POLICIES.register(name, policy_class)


def list_policies() -> list[str]:
    """Return the names of all registered policies."""
    return _POLICIES.names()


def list_complete() -> list[str]:
    """Return the names of the policies that keep all tokens."""
    return [name for name in list_policies() if not _POLICIES[name].drops]


@functools.cache
def warn_of_dropped_tokens(policy: str) -> None:
    """Log a warning that a policy has dropped tokens, once in a process for each policy and budget."""
    _log.warning(
        "%s has dropped tokens of a text, so answers cannot refer to them; `dropped_tokens` is their number. "
        "Raise `budget` or `share`, or choose a policy that keeps all tokens: %s. The policy 'chunks' "
        "retrieves what is asked for. This warning appears once.",
        policy,
        ", ".join(map(repr, list_complete())),
    )


def make(name: str, **fields: Any) -> ContextPolicy:
    """Return the policy `name` with these fields: `make("sinks", budget=256)`.

    All other fields have their defaults. The field `policy` of a policy that wraps another one may be a name.

    Raises:
        ValueError: On an unknown name or field and on an invalid size. The message lists the choices.
    """
    if isinstance(fields.get("policy"), str):
        fields["policy"] = make(fields["policy"])
    return _POLICIES.configure(name, **fields)


def name_of(policy: ContextPolicy) -> str:
    """Return the name under which a policy is registered.

    Raises:
        ValueError: If it is not registered.
    """
    return _POLICIES.name_of(policy)

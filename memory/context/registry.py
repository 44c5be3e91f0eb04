"""Registry of context policies by name. The contract tests run on every registered policy."""

from __future__ import annotations

import functools
import logging
from typing import Any

from scrubjay.memory.config_registry import Registry
from scrubjay.memory.context.policies.base import ContextPolicy
from scrubjay.memory.context.policies.chunk_presets import HiPPolicy, LongHeadsPolicy, QuestPolicy
from scrubjay.memory.context.policies.chunks import ChunksPolicy
from scrubjay.memory.context.policies.full import FullPolicy
from scrubjay.memory.context.policies.h2o import H2OPolicy
from scrubjay.memory.context.policies.recycled import RecycledPolicy
from scrubjay.memory.context.policies.scored.adakv import AdaKVPolicy
from scrubjay.memory.context.policies.scored.cake import CAKEPolicy
from scrubjay.memory.context.policies.scored.expected_attention import ExpectedAttentionPolicy
from scrubjay.memory.context.policies.scored.keydiff import KeyDiffPolicy
from scrubjay.memory.context.policies.scored.kvzip import KVzipPolicy
from scrubjay.memory.context.policies.scored.pyramidkv import PyramidKVPolicy
from scrubjay.memory.context.policies.scored.snapkv import SnapKVPolicy
from scrubjay.memory.context.policies.scored.tova import TOVAPolicy
from scrubjay.memory.context.policies.sinks import SinksPolicy, WindowPolicy

_log = logging.getLogger(__name__)

_POLICIES: Registry[ContextPolicy] = Registry(
    "policy",
    "scrubjay.memory.context.register",
    {
        "adakv": AdaKVPolicy,
        "cake": CAKEPolicy,
        "chunks": ChunksPolicy,
        "expected_attention": ExpectedAttentionPolicy,
        "full": FullPolicy,
        "h2o": H2OPolicy,
        "hip": HiPPolicy,
        "keydiff": KeyDiffPolicy,
        "kvzip": KVzipPolicy,
        "longheads": LongHeadsPolicy,
        "pyramidkv": PyramidKVPolicy,
        "quest": QuestPolicy,
        "recycled": RecycledPolicy,
        "sinks": SinksPolicy,
        "snapkv": SnapKVPolicy,
        "tova": TOVAPolicy,
        "window": WindowPolicy,
    },
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
        "Raise `budget`, or choose a policy that keeps all tokens: %s. The policy 'chunks' retrieves what is "
        "asked for. This warning appears once.",
        policy,
        ", ".join(map(repr, list_complete())),
    )


def make(name: str, **fields: Any) -> ContextPolicy:
    """Return the policy `name` with these fields: `make("sinks", budget=256)`.

    All other fields have their defaults.

    Raises:
        ValueError: On an unknown name or field and on an invalid size. The message lists the choices.
    """
    return _POLICIES.configure(name, **fields)


def name_of(policy: ContextPolicy) -> str:
    """Return the name under which a policy is registered.

    Raises:
        ValueError: If it is not registered.
    """
    return _POLICIES.name_of(policy)

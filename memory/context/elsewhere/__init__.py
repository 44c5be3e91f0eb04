"""Attention elsewhere: keys and values of a cache live in other processes or on other machines.

`PolicyCache(ElsewherePolicy((StoreProcess(), StoreProcess())), model)` keeps them in two processes. Only
queries and partial outputs travel. `scrubjay.experiments.RayStore` is a store on a node of a Ray cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.memory.context.elsewhere.policy import ElsewherePolicy as ElsewherePolicy
    from scrubjay.memory.context.elsewhere.stores import StoreProcess as StoreProcess
    from scrubjay.memory.context.elsewhere.traffic import Link as Link
    from scrubjay.memory.context.elsewhere.traffic import count_break_even_tokens as count_break_even_tokens
    from scrubjay.memory.context.elsewhere.traffic import count_traffic as count_traffic
    from scrubjay.memory.context.elsewhere.traffic import estimate_seconds as estimate_seconds

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "policy": ["ElsewherePolicy"],
        "stores": ["StoreProcess"],
        "traffic": ["Link", "count_break_even_tokens", "count_traffic", "estimate_seconds"],
    },
)

"""Key-value cache policies for the causal language models of Hugging Face transformers.

A policy computes the attention of new tokens, evicts cached tokens, selects the cached tokens that a query
reads, and loads offloaded tokens. `PolicyCache` runs the policy inside `model.generate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.memory.context.cache import PolicyCache as PolicyCache
    from scrubjay.memory.context.dtypes import check_dtype as check_dtype
    from scrubjay.memory.context.infiniretri import InfiniRetri as InfiniRetri
    from scrubjay.memory.context.models import load_model as load_model
    from scrubjay.memory.context.policies.base import CacheShape as CacheShape
    from scrubjay.memory.context.policies.base import ContextPolicy as ContextPolicy
    from scrubjay.memory.context.policies.base import LayerMemory as LayerMemory
    from scrubjay.memory.context.policies.base import LayerStats as LayerStats
    from scrubjay.memory.context.policies.base import Step as Step
    from scrubjay.memory.context.policies.scored.base import ScoredPolicy as ScoredPolicy
    from scrubjay.memory.context.registry import list_policies as list_policies
    from scrubjay.memory.context.registry import make as make
    from scrubjay.memory.context.registry import name_of as name_of
    from scrubjay.memory.context.registry import register as register

# Policies alone must not import transformers.
__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "cache": ["PolicyCache"],
        "dtypes": ["check_dtype"],
        "infiniretri": ["InfiniRetri"],
        "models": ["load_model"],
        "policies.base": ["CacheShape", "ContextPolicy", "LayerMemory", "LayerStats", "Step"],
        "policies.scored.base": ["ScoredPolicy"],
        "registry": ["list_policies", "make", "name_of", "register"],
    },
    packages=("elsewhere",),
    extras={"transformers": "lm"},
)

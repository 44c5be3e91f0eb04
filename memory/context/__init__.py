"""Memory for language models: what a causal model of transformers keeps of a text that does not end.

A policy says what a cache generates, compresses, retrieves and loads; `PolicyCache` runs it inside
`model.generate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay.kernels.first_use import imported_on_first_use
from scrubjay.memory.context.base import CacheShape, ContextPolicy, LayerMemory, Step
from scrubjay.memory.context.dtypes import check_dtype
from scrubjay.memory.context.registry import list_policies, make, name_of, register

if TYPE_CHECKING:
    from scrubjay.memory.context.cache import PolicyCache
    from scrubjay.memory.context.models import load_model

__all__ = [
    "CacheShape",
    "ContextPolicy",
    "LayerMemory",
    "PolicyCache",
    "Step",
    "check_dtype",
    "list_policies",
    "load_model",
    "make",
    "name_of",
    "register",
]

# Policies alone must not import transformers.
__getattr__ = imported_on_first_use(
    __name__, {"cache": ["PolicyCache"], "models": ["load_model"]}, {"transformers": "lm"}
)

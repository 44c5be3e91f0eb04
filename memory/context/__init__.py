"""Memory for language models: what a causal model of transformers keeps of a text that does not end.

A policy says what a cache generates, compresses, retrieves and loads; `PolicyCache` runs it inside
`model.generate`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scrubjay.memory.context.base import CacheShape, ContextPolicy, LayerMemory, Step
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
    "list_policies",
    "load_model",
    "make",
    "name_of",
    "register",
]

# On first use: policies alone must not import transformers.
_LATER = {"PolicyCache": "cache", "load_model": "models"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_LATER[name]}")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(f"{name} needs transformers: pip install 'scrubjay[lm]'") from error
    return getattr(module, name)

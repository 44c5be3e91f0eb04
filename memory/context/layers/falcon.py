"""Support for Falcon, whose attention module does not use transformers' attention functions."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from scrubjay.memory.context.attention import Attention, policy_attention


def falcon_modules(decoder: nn.Module) -> list[nn.Module]:
    """Return the attention modules of a Falcon model; an empty list for other models."""
    return [module for module in decoder.modules() if type(module).__name__ == "FalconAttention"]


def serve_falcon(decoder: nn.Module) -> bool:
    """Make the attention modules of a Falcon model use a `PolicyCache`; return False for other models."""
    modules = falcon_modules(decoder)
    for module in modules:
        if not isinstance(module.forward, functools.partial):
            module.forward = functools.partial(_attend_by_policy, module, module.forward)
    return bool(modules)


@contextmanager
def falcon_attention(decoder: nn.Module, attention: Attention) -> Iterator[None]:
    """Make Falcon's attention modules call the function `attention` inside the `with` block.

    Do not use a `PolicyCache` inside this block. Raises ValueError on a model with ALiBi, because attention
    functions do not receive the ALiBi bias.
    """
    modules = falcon_modules(decoder)
    if modules and getattr(decoder.config, "alibi", False):
        raise ValueError(
            "this Falcon model adds an ALiBi bias inside its attention module, which is not supported; use a "
            "Falcon model with rotary positions"
        )
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = functools.partial(_attend, module, attention)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _attend_by_policy(
    module: Any,
    forward: Any,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if not hasattr(options.get("layer_past"), "outside_attention"):
        return forward(hidden_states, alibi, attention_mask, **options)
    return _attend(module, policy_attention, hidden_states, alibi, attention_mask, **options)


def _attend(
    module: Any,
    attention: Attention,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    query, keys, values = (
        part.transpose(1, 2) for part in module._split_heads(module.query_key_value(hidden_states))
    )
    family: Any = importlib.import_module("transformers.models.falcon.modeling_falcon")
    query, keys = family.apply_rotary_pos_emb(query, keys, *options["position_embeddings"])
    cache = options.get("layer_past")
    if cache is not None:
        keys, values = cache.update(keys, values, module.layer_idx)
    out, _ = attention(module, query, keys, values, attention_mask, scaling=module.inv_norm_factor)
    return module.dense(out.flatten(2)), None

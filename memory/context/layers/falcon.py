"""Falcon attends in its own module, past transformers' attention functions; here it calls a given one."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from scrubjay.memory.context.attention import Attention, policy_attention


def falcon_modules(decoder: nn.Module) -> list[nn.Module]:
    """Return Falcon's attention modules; none of another model."""
    return [module for module in decoder.modules() if type(module).__name__ == "FalconAttention"]


def serve_falcon(decoder: nn.Module) -> bool:
    """Let Falcon's attention modules call our function with caches of ours; return whether there are any."""
    modules = falcon_modules(decoder)
    for module in modules:
        if not isinstance(module.forward, functools.partial):
            module.forward = functools.partial(_of_policy, module, module.forward)
    return bool(modules)


@contextmanager
def falcon_attention(decoder: nn.Module, attention: Attention) -> Iterator[None]:
    """Let Falcon's attention modules call a function inside the block, with any cache but ours.

    Raises ValueError for ALiBi, whose bias no attention function is given.
    """
    modules = falcon_modules(decoder)
    if modules and getattr(decoder.config, "alibi", False):
        raise ValueError(
            "this Falcon adds ALiBi's bias to its scores where nobody sees them; use one with rotary"
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


def _of_policy(
    module: Any,
    forward: Any,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if not hasattr(options.get("layer_past"), "attends_elsewhere"):
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

"""Falcon attends in its own module, past transformers' attention functions; here it calls ours."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torch import Tensor, nn

from scrubjay.memory.context.attention import policy_attention


def serve_falcon(decoder: nn.Module) -> bool:
    """Let Falcon's attention modules call our function with caches of ours; return whether there are any."""
    modules = [module for module in decoder.modules() if type(module).__name__ == "FalconAttention"]
    for module in modules:
        if not isinstance(module.forward, functools.partial):
            module.forward = functools.partial(_forward, module, module.forward)
    return bool(modules)


def _forward(
    module: Any,
    forward: Any,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    cache: Any = options.get("layer_past")
    if not hasattr(cache, "attends_elsewhere"):
        return forward(hidden_states, alibi, attention_mask, **options)
    query, keys, values = (
        part.transpose(1, 2) for part in module._split_heads(module.query_key_value(hidden_states))
    )
    family: Any = importlib.import_module("transformers.models.falcon.modeling_falcon")
    query, keys = family.apply_rotary_pos_emb(query, keys, *options["position_embeddings"])
    keys, values = cache.update(keys, values, module.layer_idx)
    out, _ = policy_attention(module, query, keys, values, attention_mask, scaling=module.inv_norm_factor)
    return module.dense(out.flatten(2)), None

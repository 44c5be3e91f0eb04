"""Wrap the attention of single layers of a transformers model, and capture attention weights.

Transformers looks up the attention function by name in its AttentionInterface. This module registers one
function there. Inside a `with` block it runs the wrappers of the current layer around SDPA; layers without
wrappers run plain SDPA. After the block the model has its former attention function. A `PolicyCache` raises
an error inside the block.

`output_attentions=True` makes transformers compute a matrix of all queries by all keys in every layer. The
wrapper that captures weights computes only the requested rows of the requested layers, in addition to the
model's own attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from scrubjay.memory.context.attention import ATTENTION, LOCK, WRAPPED, Attention
from scrubjay.memory.context.policies.dense import (
    Scoring,
    causal_attention,
    masked_attention,
    softmax_with_sinks,
)

Wrapper = Callable[..., tuple[Tensor, Tensor | None]]
"""Wrapper `wrapper(attention, module, query, key, value, mask, **options)`, which calls `attention`."""

_wrappers: WeakKeyDictionary[nn.Module, list[Wrapper]] = WeakKeyDictionary()


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Return the softmax attention modules of a decoder by layer index, lowest first."""
    attention_layers = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    layers = {getattr(module, "layer_idx", None): module for module in attention_layers}
    return {layer: layers[layer] for layer in sorted(layer for layer in layers if isinstance(layer, int))}


@contextmanager
def wrapped_attention(model: PreTrainedModel, wrappers: Mapping[int, Wrapper]) -> Iterator[None]:
    """Run each layer's wrapper around its attention inside a `with` block. These blocks can be nested.

    Raises ValueError for a layer that the model does not have, and for a model whose attention function
    cannot be replaced.
    """
    modules = attention_modules(model)
    unknown = sorted(set(wrappers) - set(modules))
    if unknown:
        raise ValueError(f"layers {unknown}: the model has attention in layers {sorted(modules)}")
    _register()
    installed_wrappers = []
    with _replace_attention(model):
        try:
            for layer, wrapper in wrappers.items():
                installed_wrappers.append((_wrappers.setdefault(modules[layer], []), wrapper))
                installed_wrappers[-1][0].append(wrapper)
            yield
        finally:
            for wrapper_list, wrapper in installed_wrappers:
                wrapper_list.remove(wrapper)


@contextmanager
def _replace_attention(model: PreTrainedModel) -> Iterator[None]:
    """Make the model use this module's attention function inside a `with` block."""
    with LOCK:
        before = str(model.config._attn_implementation)
        if before == ATTENTION:
            raise RuntimeError(
                "another thread runs this model with a PolicyCache; wrap its attention after that call has "
                "ended"
            )
        model.set_attn_implementation(WRAPPED)
    try:
        if model.config._attn_implementation != WRAPPED:
            raise ValueError(
                f"{type(model).__name__} does not support transformers' AttentionInterface, so its attention "
                "cannot be wrapped; use another model"
            )
        yield
    finally:
        model.set_attn_implementation(before)


@functools.cache
def _register() -> None:
    AttentionInterface.register(WRAPPED, _attend)
    AttentionMaskInterface.register(WRAPPED, sdpa_mask)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    attention: Attention = _softmax_attention
    for wrapper in reversed(_wrappers.get(module, [])):  # the first wrapper is the outermost
        attention = functools.partial(wrapper, attention)
    return attention(module, query, key, value, mask, dropout=dropout, **options)


def _softmax_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return the attention output, computed by SDPA if possible.

    SDPA supports neither soft caps nor learned sinks. For these the attention weights are computed
    explicitly.
    """
    scoring = Scoring(scaling, softcap, s_aux)
    if scoring.is_plain:
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **options
        )
    if mask is None:
        return causal_attention(query, key, value, None, scoring, dropout).transpose(1, 2), None
    return masked_attention(query, key, value, mask[:, 0], scoring, dropout).transpose(1, 2), None


Heads = Mapping[int, Sequence[int] | None]
"""Mapping from layers to their requested heads; None for all heads."""


@contextmanager
def capture_attention(
    model: PreTrainedModel, heads: Heads, rows: slice = slice(None)
) -> Iterator[dict[int, list[Float[Tensor, "batch heads rows keys"]]]]:
    """Collect the attention weights of every forward pass inside a `with` block.

    The block gets a dict that maps each layer to its weights, one tensor per forward pass. `rows` selects the
    queries of each pass. The dtype of the weights is at least float32. The model's outputs do not change.
    Raises ValueError for layers or heads that the model does not have.
    """
    weights_by_layer: dict[int, list[Tensor]] = {layer: [] for layer in heads}

    def keep(layer: int, weights: Tensor) -> None:
        weights_by_layer[layer].append(weights)

    with _capture(model, heads, rows, keep):
        yield weights_by_layer


@torch.no_grad()
def attention_weights(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch time"],
    heads: Heads,
    rows: slice = slice(None),
    *,
    attention_mask: Bool[Tensor, "batch time"] | Int[Tensor, "batch time"] | None = None,
    cache: Cache | None = None,
) -> dict[int, Float[Tensor, "batch heads rows keys"]]:
    """Return the attention weights of one forward pass, which stops at the highest layer in `heads`.

    The output of that layer and all later layers are not computed.

    Args:
        model: A causal language model of transformers.
        input_ids: Token ids for the model.
        heads: Requested heads of each requested layer.
        rows: Requested queries, as a slice of `input_ids`.
        attention_mask: The tokenizer's padding mask.
        cache: Key-value cache. The layers that run append their keys and values to it.
    """
    weights_by_layer: dict[int, Tensor] = {}

    def keep(layer: int, weights: Tensor) -> None:
        weights_by_layer[layer] = weights
        if len(weights_by_layer) == len(heads):
            raise _AllCaptured

    with _capture(model, heads, rows, keep), suppress(_AllCaptured):
        model.base_model(input_ids, attention_mask=attention_mask, cache=cache, use_cache=cache is not None)
    return weights_by_layer


class _AllCaptured(Exception):
    """Exception that ends the forward pass once all requested weights are computed."""


def _capture(
    model: PreTrainedModel, heads: Heads, rows: slice, keep: Callable[[int, Tensor], None]
) -> AbstractContextManager[None]:
    """Call `keep` with each layer and its attention weights inside a `with` block."""

    def record(
        layer: int,
        attention: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        every_head, own_heads = range(query.shape[1]), heads[layer]
        own_heads = every_head if own_heads is None else own_heads
        if not all(head in every_head for head in own_heads):
            raise ValueError(
                f"heads {list(own_heads)} of layer {layer}: the layer has heads 0 to {every_head[-1]}"
            )
        scoring = Scoring(options["scaling"], options.get("softcap"), options.get("s_aux"))
        keep(layer, compute_weights(query, key, mask, scoring, own_heads, rows))
        return attention(module, query, key, value, mask, **options)

    return wrapped_attention(model, {layer: functools.partial(record, layer) for layer in heads})


def compute_weights(
    query: Float[Tensor, "batch heads time width"],
    key: Float[Tensor, "batch key_heads keys width"],
    mask: Tensor | None,
    scoring: Scoring,
    heads: Sequence[int],
    rows: slice,
) -> Float[Tensor, "batch selected rows keys"]:
    """Return the model's attention weights. Each row sums to 1, or to less with a learned sink.

    Args:
        query: All queries.
        key: All keys; one key head serves one or several query heads.
        mask: Boolean mask (True: visible), additive mask, or None for a causal mask.
        scoring: The model's scale, soft cap and learned sinks.
        heads: Requested query heads.
        rows: Requested queries.
    """
    head_indices = torch.as_tensor(list(heads), device=query.device)
    time, keys = query.shape[2], key.shape[2]
    key_heads = head_indices // (query.shape[1] // key.shape[1])
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = scoring.compute_scores(
        (query[:, head_indices, rows] @ key[:, key_heads].transpose(2, 3)).to(wide)
    )
    if mask is None:
        place = torch.arange(keys - time, keys, device=query.device)[rows]
        mask = torch.arange(keys, device=query.device) <= place[:, None]
    else:
        mask = mask[:, head_indices if mask.shape[1] > 1 else slice(None), rows]
    if mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, torch.finfo(wide).min)
    else:
        logits = logits + mask
    sinks = None if scoring.sinks is None else scoring.sinks[head_indices].view(-1, 1, 1)
    return softmax_with_sinks(logits, sinks)

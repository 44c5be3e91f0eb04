"""Attention weights of selected layers, heads and query rows, without eager attention.

`output_attentions=True` makes transformers compute a matrix of all queries by all keys in every layer. This
module computes only the requested rows of the requested layers, in addition to the model's own attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from scrubjay.memory.context.attention import Attention
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.heads.wrap import wrapped_attention

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

    with wrapped_attention(model, {layer: _Capture(layer, heads[layer], rows, keep) for layer in heads}):
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

    wrappers = {layer: _Capture(layer, heads[layer], rows, keep) for layer in heads}
    with wrapped_attention(model, wrappers), suppress(_AllCaptured):
        model.base_model(input_ids, attention_mask=attention_mask, cache=cache, use_cache=cache is not None)
    return weights_by_layer


class _AllCaptured(Exception):
    """Exception that ends the forward pass once all requested weights are computed."""


class _Capture:
    """Attention wrapper of one layer that records weights."""

    def __init__(self, layer: int, heads: Sequence[int] | None, rows: slice, keep: Any) -> None:
        self.layer, self.heads, self.rows, self.keep = layer, heads, rows, keep

    def __call__(
        self,
        attention: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        scaling: float,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        heads = range(query.shape[1]) if self.heads is None else self.heads
        if not all(0 <= head < query.shape[1] for head in heads):
            raise ValueError(
                f"heads {list(heads)} of layer {self.layer}: the layer has heads 0 to {query.shape[1] - 1}"
            )
        scoring = Scoring(scaling, softcap, s_aux)
        self.keep(self.layer, compute_weights(query, key, mask, scoring, heads, self.rows))
        options |= {"scaling": scaling, "softcap": softcap, "s_aux": s_aux}
        return attention(module, query, key, value, mask, **options)


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
    if scoring.sinks is None:
        return logits.softmax(dim=-1)
    sinks = scoring.sinks[head_indices].to(wide)[:, None, None].expand(*logits.shape[:-1], 1)
    return torch.cat([logits, sinks], dim=-1).softmax(dim=-1)[..., :-1]

"""Attention weights of chosen layers, heads and query rows, without eager attention anywhere.

`output_attentions=True` makes transformers compute, in every layer, a matrix of all queries by all keys. Here
only the rows asked for are computed, in the layers asked for, next to the model's own attention.
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
"""Layer to the heads wanted of it; None: all of them."""


@contextmanager
def capture_attention(
    model: PreTrainedModel, heads: Heads, rows: slice = slice(None)
) -> Iterator[dict[int, list[Float[Tensor, "batch heads rows keys"]]]]:
    """Give a dict that collects, for each layer in `heads`, the weights of every forward pass in the block.

    `rows` selects among the queries of a pass; weights are at least float32. The model computes what it would
    compute outside the block. Raises ValueError for layers or heads the model does not have.
    """
    captured: dict[int, list[Tensor]] = {layer: [] for layer in heads}

    def keep(layer: int, weights: Tensor) -> None:
        captured[layer].append(weights)

    with wrapped_attention(model, {layer: _Capture(layer, heads[layer], rows, keep) for layer in heads}):
        yield captured


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
    """Return the weights of one forward pass, which ends at the highest layer in `heads`.

    Neither that layer's values nor anything above it is computed.

    Args:
        model: A causal language model of transformers.
        input_ids: Its tokens.
        heads: Which heads of which layers.
        rows: Which queries, by their place in `input_ids`.
        attention_mask: The tokenizer's padding mask.
        cache: Is extended by the keys and values of the layers that ran.
    """
    captured: dict[int, Tensor] = {}

    def keep(layer: int, weights: Tensor) -> None:
        captured[layer] = weights
        if len(captured) == len(heads):
            raise _Enough

    wrappers = {layer: _Capture(layer, heads[layer], rows, keep) for layer in heads}
    with wrapped_attention(model, wrappers), suppress(_Enough):
        model.base_model(input_ids, attention_mask=attention_mask, cache=cache, use_cache=cache is not None)
    return captured


class _Enough(Exception):
    """All weights asked for are there."""


class _Capture:
    """The wrapper of one layer."""

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
            raise ValueError(f"heads {list(heads)} of layer {self.layer}: it has {query.shape[1]}, from 0")
        scoring = Scoring(scaling, softcap, s_aux)
        self.keep(self.layer, weights_of(query, key, mask, scoring, heads, self.rows))
        options |= {"scaling": scaling, "softcap": softcap, "s_aux": s_aux}
        return attention(module, query, key, value, mask, **options)


def weights_of(
    query: Float[Tensor, "batch heads time width"],
    key: Float[Tensor, "batch key_heads keys width"],
    mask: Tensor | None,
    scoring: Scoring,
    heads: Sequence[int],
    rows: slice,
) -> Float[Tensor, "batch chosen rows keys"]:
    """Return the weights of keys as the model makes them; of a row they add up to 1, or less by its sink's.

    Args:
        query: All queries.
        key: All keys, a head for one or several of the queries'.
        mask: Boolean (True: visible), additive, or None for causal.
        scoring: What the model does to scores.
        heads: Which of the queries' heads.
        rows: Which queries.
    """
    chosen = torch.as_tensor(list(heads), device=query.device)
    time, keys = query.shape[2], key.shape[2]
    key_heads = chosen // (query.shape[1] // key.shape[1])
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = scoring.of((query[:, chosen, rows] @ key[:, key_heads].transpose(2, 3)).to(wide))
    if mask is None:
        place = torch.arange(keys - time, keys, device=query.device)[rows]
        mask = torch.arange(keys, device=query.device) <= place[:, None]
    else:
        mask = mask[:, chosen if mask.shape[1] > 1 else slice(None), rows]
    if mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, torch.finfo(wide).min)
    else:
        logits = logits + mask
    if scoring.sinks is None:
        return logits.softmax(dim=-1)
    sinks = scoring.sinks[chosen].to(wide)[:, None, None].expand(*logits.shape[:-1], 1)
    return torch.cat([logits, sinks], dim=-1).softmax(dim=-1)[..., :-1]

"""Attention sinks of single heads: how many heads have one, and a factor per head on its attention.

Sink rate (Gu et al. 2025, arXiv 2410.10781, section 3): a head has a sink if its attention to the first
token, averaged over the queries of a sequence, exceeds a threshold. The threshold is 0.3 for sequences of 64
tokens. Models with a high rate need a context policy that retains sinks.

ZeroTuning (Han et al. 2025, arXiv 2505.11739) multiplies the attention weight of token 0 by gamma and
renormalizes the weights of the query. This equals adding log(gamma) to the logit of token 0. Nothing is
trained; gammas are selected by the validation score of a task. The bias needs no query-by-key mask. Queries
and keys get eight more columns, of which one is used. In this column a query holds log(gamma) of its head,
the key of token 0 holds 1, and all other keys hold 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from scrubjay.memory.context.attention import Attention
from scrubjay.memory.context.capture import attention_modules, capture_attention, wrapped_attention


class AttentionStats(NamedTuple):
    """Attention statistics of the heads of a model, averaged over the queries of each sequence."""

    sinks: Float[Tensor, "batch layers heads"]
    """Mean attention to token 0."""
    entropy: Float[Tensor, "batch layers heads"]
    """Mean entropy of a query's weights, in nats; 0 if one token gets all the attention."""
    layers: list[int]
    """Indices of the attention layers."""


@torch.no_grad()
def measure_attention(model: PreTrainedModel, input_ids: Int[Tensor, "batch time"]) -> AttentionStats:
    """Return the attention statistics of each head in each attention layer."""
    layers = [*attention_modules(model)]
    with capture_attention(model, dict.fromkeys(layers)) as weights:
        model.base_model(input_ids, use_cache=False)
    weights_by_layer = [weights[layer][0] for layer in layers]
    sinks = torch.stack([each[..., 0].mean(dim=-1) for each in weights_by_layer], dim=1)
    entropy = [torch.special.entr(each).sum(dim=-1).mean(dim=-1) for each in weights_by_layer]
    return AttentionStats(sinks, torch.stack(entropy, dim=1), layers)


def sink_weights(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch layers heads"]:
    """Return the mean attention of each head to token 0, over the queries of each sequence."""
    return measure_attention(model, input_ids).sinks


def sink_rate(model: PreTrainedModel, input_ids: Int[Tensor, "batch time"], threshold: float = 0.3) -> float:
    """Return the fraction of heads, over all sequences, with mean attention to token 0 above `threshold`."""
    return (sink_weights(model, input_ids) > threshold).float().mean().item()


_COLUMNS = 8  # fast kernels need widths that are multiples of eight


@contextmanager
def sink_bias(model: PreTrainedModel, gammas: Mapping[int, float | Sequence[float]]) -> Iterator[None]:
    """Multiply the attention to token 0 by gamma inside a `with` block.

    `gammas` maps a layer index to one gamma for all heads, or to a list with one gamma per head. Values above
    1 strengthen the sink. Token 0 of a row is the first token that is not padding.

    Raises ValueError if a gamma is not positive, if the number of gammas does not match the number of heads,
    if a layer does not exist, or if a layer has a sliding window, which loses token 0. A `PolicyCache` raises
    ValueError if it is created or used inside the `with` block.
    """
    modules = attention_modules(model)
    wrappers = {}
    for layer, gamma in gammas.items():
        each = list(gamma) if isinstance(gamma, Sequence) else [gamma]
        if not all(g > 0 and math.isfinite(g) for g in each):
            raise ValueError(f"gammas of layer {layer} are {each}; each must be positive and finite")
        if layer in modules and getattr(modules[layer], "sliding_window", None) is not None:
            raise ValueError(
                f"layer {layer} has a sliding window, which loses token 0; choose layers with full attention"
            )
        wrappers[layer] = functools.partial(_add_bias, layer, [math.log(g) for g in each])
    with wrapped_attention(model, wrappers):
        yield


def _add_bias(
    layer: int,
    biases: list[float],
    attention: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention wrapper of one layer that adds the bias."""
    heads, width = query.shape[1], value.shape[-1]
    if len(biases) not in (1, heads):
        raise ValueError(f"layer {layer} has {heads} heads; pass 1 or {heads} gammas, not {len(biases)}")
    bias = torch.tensor(biases, dtype=query.dtype, device=query.device) / scaling
    at_zero = torch.zeros(*key.shape[:3], 1, dtype=key.dtype, device=key.device)
    at_zero.scatter_(2, _first(mask, key)[:, None, None, None].expand(-1, key.shape[1], 1, 1), 1)
    query = torch.cat([query, bias.view(1, -1, 1, 1).expand(*query.shape[:3], 1)], dim=-1)
    wide = [functional.pad(t, (0, _COLUMNS - 1)) for t in (query, torch.cat([key, at_zero], dim=-1))]
    out, weights = attention(
        module, *wide, functional.pad(value, (0, _COLUMNS)), mask, scaling=scaling, **options
    )
    return out[..., :width], weights


def _first(mask: Tensor | None, key: Tensor) -> Tensor:
    """Return for each row the index of the first key that is visible to the last query."""
    if mask is None:
        return torch.zeros(key.shape[0], dtype=torch.int64, device=key.device)
    visible = mask[:, 0, -1]
    if visible.dtype != torch.bool:
        visible = visible > torch.finfo(visible.dtype).min / 2
    return visible.int().argmax(dim=-1).expand(key.shape[0])

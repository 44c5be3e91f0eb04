"""Attention sink rate: the fraction of heads of a language model that attend mainly to token 0.

Gu et al. 2025 (arXiv 2410.10781, section 3): a head has a sink if its attention to the first token, averaged
over the queries of a sequence, exceeds a threshold. The threshold is 0.3 for sequences of 64 tokens. Models
with a high rate need a context policy that retains sinks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.memory.heads.capture import capture_attention
from scrubjay.memory.heads.wrap import attention_modules


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

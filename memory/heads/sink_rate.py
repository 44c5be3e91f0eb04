"""How many heads of a language model have a sink: token 0, on which they spend what they do not need.

Gu et al. 2025 (arXiv 2410.10781, section 3): a head has one where the attention to the first token, averaged
over a sequence's queries, exceeds a threshold; 0.3, on sequences of 64 tokens. Policies that keep sinks
matter to models whose rate is high.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.memory.heads.capture import capture_attention
from scrubjay.memory.heads.wrap import attention_modules


class Attended(NamedTuple):
    """Where the heads of a model look, over the queries of each sequence."""

    sinks: Float[Tensor, "batch layers heads"]
    """Mean attention to token 0."""
    entropy: Float[Tensor, "batch layers heads"]
    """Mean entropy of a query's weights, in nats: 0 where all is one token's."""
    layers: list[int]
    """Which layers of the model attend."""


@torch.no_grad()
def attended(model: PreTrainedModel, input_ids: Int[Tensor, "batch time"]) -> Attended:
    """Return where each head of each layer that attends looks."""
    layers = [*attention_modules(model)]
    with capture_attention(model, dict.fromkeys(layers)) as weights:
        model.base_model(input_ids, use_cache=False)
    found = [weights[layer][0] for layer in layers]
    sinks = torch.stack([each[..., 0].mean(dim=-1) for each in found], dim=1)
    entropy = [torch.special.entr(each).sum(dim=-1).mean(dim=-1) for each in found]
    return Attended(sinks, torch.stack(entropy, dim=1), layers)


def sink_weights(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch layers heads"]:
    """Return each head's mean attention to token 0, over the queries of each sequence."""
    return attended(model, input_ids).sinks


def sink_rate(model: PreTrainedModel, input_ids: Int[Tensor, "batch time"], threshold: float = 0.3) -> float:
    """Return the fraction of heads, over sequences, whose mean attention to token 0 is over `threshold`."""
    return (sink_weights(model, input_ids) > threshold).float().mean().item()

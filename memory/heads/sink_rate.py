"""How many heads of a language model have a sink: token 0, on which they spend what they do not need.

Gu et al. 2025 (arXiv 2410.10781, section 3): a head has one where the attention to the first token, averaged
over a sequence's queries, exceeds a threshold; 0.3, on sequences of 64 tokens. Policies that keep sinks
matter to models whose rate is high.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.memory.heads.capture import capture_attention
from scrubjay.memory.heads.wrap import attention_modules


@torch.no_grad()
def sink_weights(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch layers heads"]:
    """Return each head's mean attention to token 0, over the queries of each sequence."""
    layers = attention_modules(model)
    with capture_attention(model, dict.fromkeys(layers)) as weights:
        model.base_model(input_ids, use_cache=False)
    return torch.stack([weights[layer][0][..., 0].mean(dim=-1) for layer in layers], dim=1)


def sink_rate(model: PreTrainedModel, input_ids: Int[Tensor, "batch time"], threshold: float = 0.3) -> float:
    """Return the fraction of heads, over sequences, whose mean attention to token 0 is over `threshold`."""
    return (sink_weights(model, input_ids) > threshold).float().mean().item()

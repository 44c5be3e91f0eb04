"""Identity of a language model: its sizes, and some of its weights, which fine-tunes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Least cosine similarity of embeddings: near 0 for unrelated models, near 1 for fine-tunes.
_SIMILARITY = 0.9


def architecture(model: PreTrainedModel) -> str:
    """Return an identifier of a model's type and sizes."""
    config = model.config.get_text_config(decoder=True)
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
    return "-".join(map(str, (config.model_type, *(getattr(config, name, None) for name in names))))


def sample_weights(model: PreTrainedModel) -> list[float]:
    """Return some weights of the embedding, which fine-tuning and rounding hardly change."""
    weight: Any = model.get_input_embeddings().weight  # type checkers take it for a module
    tokens, columns = (torch.linspace(0, size - 1, 16, dtype=torch.long) for size in weight.shape)
    return weight.detach()[tokens.to(weight.device)][:, columns.to(weight.device)].float().flatten().tolist()


def is_similar(model: PreTrainedModel, sample: Sequence[float]) -> bool:
    """Return True if the weights of a model are similar to those of which `sample_weights` is `sample`."""
    own, other = torch.tensor(sample_weights(model)), torch.tensor(sample)
    return bool(torch.cosine_similarity(own, other, dim=0) > _SIMILARITY)

"""Stored retrieval scores of the heads of known models, and their use by the policy `duo`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from scrubjay.memory.context.layers.layer_types import LayerType
from scrubjay.memory.context.policies.base import ContextPolicy
from scrubjay.memory.context.policies.scored.duo import DuoPolicy

# Least cosine similarity of embeddings: near 0 for unrelated models, near 1 for fine-tunes.
_SIMILARITY = 0.9
SCORES_FILE = Path(__file__).with_name("retrieval_heads.json")
"""File of the scores of all known models."""


def find_scores(model: PreTrainedModel) -> dict[str, Any] | None:
    """Return the stored entry of a known model or a fine-tune of it; None for other models.

    A model is known if its sizes are equal to those of a stored model and its weights are similar.
    """
    entry = _load_scores().get(architecture(model))
    if entry is None:
        return None
    weights = (torch.tensor(one) for one in (sample_weights(model), entry["weights"]))
    return entry if torch.cosine_similarity(*weights, dim=0) > _SIMILARITY else None


def resolve_scores(
    policy: ContextPolicy, model: PreTrainedModel, layer_types: Sequence[LayerType]
) -> ContextPolicy:
    """Return the policy with the stored scores of the model, if it is a `DuoPolicy` without scores.

    Raises ValueError if there are no scores of the model, or if the scores have another number of heads.
    """
    if not isinstance(policy, DuoPolicy):
        return policy
    layers = [index for index, kind in enumerate(layer_types) if kind.attends and kind.window is None]
    if policy.scores is None:
        entry = find_scores(model)
        scores = () if entry is None else tuple(map(tuple, entry["scores"]))
        rows = dict(zip((entry and entry.get("layers")) or range(len(scores)), scores, strict=True))
        if not rows.keys() >= {*layers}:
            raise ValueError(
                f"DuoPolicy needs retrieval scores, and none are stored for this {type(model).__name__}: "
                "measure and store them with `python -m scrubjay.memory.context.retrieval_heads FOLDER`, or "
                "use DuoPolicy(scores=...) with one row of scores for each layer with full attention"
            )
        policy = replace(policy, scores=tuple(rows[index] for index in layers))
    heads = getattr(model.config.get_text_config(decoder=True), "num_attention_heads", None)
    for index, row in enumerate(policy.scores or ()):
        if isinstance(heads, int) and len(row) != heads:
            raise ValueError(
                f"scores[{index}] has {len(row)} numbers: must have {heads}, one for each query head"
            )
    return policy


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


@cache
def _load_scores() -> dict[str, Any]:
    return json.loads(SCORES_FILE.read_text()) if SCORES_FILE.exists() else {}

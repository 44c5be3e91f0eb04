"""Stored retrieval scores of the heads of known models, and their use by the policy `duo`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from scrubjay.memory.context.identity import architecture, is_similar
from scrubjay.memory.context.layers.layer_types import LayerType
from scrubjay.memory.context.layers.rotation import find_rotation
from scrubjay.memory.context.policies.base import ContextPolicy
from scrubjay.memory.context.policies.scored.duo import DuoPolicy
from scrubjay.memory.context.policies.scored.kvzap import KVzapPolicy, resolve_weights

SCORES_FILE = Path(__file__).with_name("retrieval_heads.json")
"""File of the scores of all known models."""


def find_scores(model: PreTrainedModel) -> dict[str, Any] | None:
    """Return the stored entry of a known model or a fine-tune of it; None for other models.

    A model is known if its sizes are equal to those of a stored model and its weights are similar.
    """
    entry = _load_scores().get(architecture(model))
    return entry if entry is not None and is_similar(model, entry["weights"]) else None


def resolve_scores(
    policy: ContextPolicy, model: PreTrainedModel, layer_types: Sequence[LayerType]
) -> ContextPolicy:
    """Return the policy with the stored scores or weights of the model, if it needs and lacks them.

    Raises ValueError if there are none of the model, or if they have another number of heads.
    """
    layers = [index for index, kind in enumerate(layer_types) if kind.attends and kind.window is None]
    return policy.map_inner(lambda inner: _resolve_own(inner, model, layers))


def _resolve_own(policy: ContextPolicy, model: PreTrainedModel, layers: Sequence[int]) -> ContextPolicy:
    if isinstance(policy, KVzapPolicy):
        sizes = find_rotation(model).sizes
        return resolve_weights(policy, model, {index: sizes[index][0] for index in layers})
    if not isinstance(policy, DuoPolicy):
        return policy
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


@cache
def _load_scores() -> dict[str, Any]:
    return json.loads(SCORES_FILE.read_text()) if SCORES_FILE.exists() else {}

"""Layer types from a model's config, and errors for models that no policy supports."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

_ATTENTION_TYPES = {"full_attention", "sliding_attention", "chunked_attention", "hybrid", "hybrid_sliding"}
_STATE_TYPES = {"conv", "linear_attention", "hybrid", "hybrid_sliding"}
_STATELESS = "dummy"
"""Name in transformers of layers that only have experts or a feed-forward network."""

_REASONS = {
    "blt": "runs four submodels with caches of their own, three on bytes and one on patches of bytes",
    "doge": "adds a bias computed from the values to its attention mask, which policies do not support",
    "git": "computes attention in its own code, which does not call policies",
    "minimax": "needs a cache class of its own",
    "xlstm": "has no attention layer and needs a cache class of its own",
}
"""Reasons why no policy supports a model type, which neither its config nor its layer types say."""


class LayerType(NamedTuple):
    """Cache requirements of one layer."""

    attends: bool
    """True for a layer with keys and values."""
    window: int | None
    """Number of tokens in a window or, with `is_chunked`, in a chunk; None for full attention.

    A window includes the query's own token."""
    is_chunked: bool
    """True for chunked attention, False for a sliding window."""
    states: int
    """Number of linear, convolutional or recurrent states."""


def get_layer_types(config: PreTrainedConfig) -> list[LayerType]:
    """Return the types of a decoder's layers, in order.

    Raises ValueError with a one-line reason on a model that no policy supports.
    """
    name = config.model_type
    if getattr(config, "kv_lora_rank", None):
        raise ValueError(
            f"{name} caches one latent vector per token and computes keys from it (MLA); a policy would "
            "cache the keys, which are many times larger: use the model's own cache"
        )
    if getattr(config, "alibi", False) or name in ("bloom", "mpt"):
        raise ValueError(
            f"{name} adds a position bias to its attention scores (ALiBi), which policies do not support: "
            "use the model's own cache"
        )
    if name == "recurrent_gemma":
        raise ValueError(
            f"{name} keeps states in its modules, not in the cache, so different conversations would share "
            "states: use a model that keeps its states in the cache"
        )
    if (loops := getattr(config, "n_recurrent_loops", 1)) > 1:
        raise ValueError(
            f"{name} runs its layers {loops} times in a call and uses additional caches, which policies do "
            "not support: use the model's own cache"
        )
    if reason := _REASONS.get(name):
        raise ValueError(f"{name} {reason}: use the model's own cache")
    types, options = get_layer_types_and_kwargs(config)
    if "reuse" in (getattr(config, "kv_sharing_modes", None) or []):
        raise ValueError(
            f"{name} has layers that read the keys of other layers, but a policy may have evicted these "
            "keys: use the model's own cache"
        )
    if unknown := sorted(set(types) - _ATTENTION_TYPES - _STATE_TYPES - {_STATELESS}):
        raise ValueError(
            f"{name} has layers of type {', '.join(unknown)}, which policies do not support: use the model's "
            "own cache"
        )
    if not _ATTENTION_TYPES & set(types):
        raise ValueError(
            f"{name} has no attention layer: its state does not grow, so a cache policy has nothing to drop; "
            "use the model's own cache"
        )
    return [
        LayerType(
            kind in _ATTENTION_TYPES,
            own_options.get("sliding_window"),
            kind == "chunked_attention",
            own_options.get("number_of_states", 0) if kind in _STATE_TYPES else 0,
        )
        for kind, own_options in zip(types, options, strict=True)
    ]

"""What each layer of a model is, as its config says, and what of it no policy can serve."""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention", "hybrid", "hybrid_sliding"}
_WITH_STATES = {"conv", "linear_attention", "hybrid", "hybrid_sliding"}
_NOTHING = "dummy"
"""What transformers calls layers of experts or a feed-forward alone."""


class Kind(NamedTuple):
    """What one layer keeps of a text."""

    attends: bool
    """Whether it has keys and values."""
    window: int | None
    """How many tokens it sees, its own included, or of a chunk; None for all."""
    chunked: bool
    """Whether it sees its chunk of the text, else its last tokens."""
    states: int
    """How many states of its own it has, linear, convolutional or recurrent."""


def kinds_of(config: PreTrainedConfig) -> list[Kind]:
    """Return what the layers of a model's decoder are, the first first.

    Raises ValueError, in one line that says why, on what no policy can serve.
    """
    name = config.model_type
    if getattr(config, "kv_lora_rank", None):
        raise ValueError(
            f"{name} keeps one latent vector a token and makes keys of it (MLA); a policy would keep the "
            "keys, which are many times larger: use the model's own cache"
        )
    if getattr(config, "alibi", False) or name in ("bloom", "mpt"):
        raise ValueError(
            f"{name} adds its positions to scores (ALiBi), past the function by which policies attend: use "
            "the model's own cache"
        )
    if name == "recurrent_gemma":
        raise ValueError(
            f"{name} keeps states in its modules and not in its cache, so that conversations would mix: use "
            "a model whose states are in the cache"
        )
    if (loops := getattr(config, "n_recurrent_loops", 1)) > 1:
        raise ValueError(
            f"{name} reads layers {loops} times in a call and adds caches for them, in which a policy has no "
            "part: use the model's own cache"
        )
    types, options = get_layer_types_and_kwargs(config)
    if "reuse" in (getattr(config, "kv_sharing_modes", None) or []):
        raise ValueError(
            f"{name} has layers that read the keys of other layers, which a policy may have dropped: use the "
            "model's own cache"
        )
    if unknown := sorted(set(types) - _ATTENDING - _WITH_STATES - {_NOTHING}):
        raise ValueError(
            f"{name} has layers of {', '.join(unknown)}, of which no policy knows what to keep: use the "
            "model's own cache"
        )
    if not _ATTENDING & set(types):
        raise ValueError(
            f"{name} attends in no layer: its state does not grow, and there is nothing for a policy to do; "
            "use the model's own cache"
        )
    return [_kind(layer, own) for layer, own in zip(types, options, strict=True)]


def _kind(layer: str, options: dict[str, Any]) -> Kind:
    return Kind(
        layer in _ATTENDING,
        options.get("sliding_window"),
        layer == "chunked_attention",
        options.get("number_of_states", 0) if layer in _WITH_STATES else 0,
    )

"""The attention function under which a model of transformers calls its policy.

Registered with transformers on first use. It asks for no mask of queries by keys: the padding mask of the
tokenizer comes through as it is.
"""

from __future__ import annotations

import functools
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from scrubjay.memory.context.parts.dense import causal_attention

ATTENTION = "scrubjay"
"""Name of the attention function in `config._attn_implementation`."""

KEYWORD = "policy_layer"
"""Keyword by which a cache hands its layer to the attention function of the same module."""


@runtime_checkable
class Attends(Protocol):
    """One layer of a cache, which reads and keeps what its policy says."""

    def attend(
        self,
        query: Float[Tensor, "batch heads length width"],
        keys: Float[Tensor, "batch key_heads length width"],
        values: Float[Tensor, "batch key_heads length value_width"],
        mask: Tensor | None,
        position_ids: Tensor | None,
        scale: float,
    ) -> Float[Tensor, "batch heads length value_width"]:
        """Return what the new tokens read.

        Args:
            query: Of the new tokens, as the model turned them.
            keys: Theirs.
            values: Theirs.
            mask: The tokenizer's padding mask, "batch columns"; None without padding.
            position_ids: What the model turned queries and keys by; None for the order of columns.
            scale: Of the scores.
        """
        ...


@functools.cache
def register_attention() -> None:
    """Make the name known to transformers."""
    AttentionInterface.register(ATTENTION, policy_attention)
    AttentionMaskInterface.register(ATTENTION, _padding_mask)


def policy_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch key_heads held width"],
    value: Float[Tensor, "batch key_heads held value_width"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    policy_layer: Attends | None = None,
    position_ids: Tensor | None = None,
    **unused: object,
) -> tuple[Float[Tensor, "batch length heads value_width"], None]:
    """Return what the tokens read through their policy; without one, of all keys, causally.

    Parameters are in the order of transformers' SDPA, by which packages that wrap every attention function
    call.

    Args:
        module: The model's attention layer.
        query: Of the new tokens.
        key: With a policy those of the new tokens, else all there are.
        value: As `key`.
        attention_mask: The tokenizer's padding mask, "batch columns".
        dropout: Refused with a policy.
        scaling: Of the scores; by default one over the root of the width.
        policy_layer: The cache's layer of this module.
        position_ids: What the model turned queries and keys by.
        unused: What else transformers hands on; `softcap` is refused.

    Raises:
        ValueError: on what policies do not do.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if unused.get("softcap") is not None:
        raise ValueError(
            f"{type(module).__name__} caps its scores, which policies do not; use another attention"
        )
    if policy_layer is None:
        valid = None if attention_mask is None else attention_mask.bool()[:, -key.shape[2] :]
        out = causal_attention(query, key, value, valid, scale, dropout)
    elif dropout:
        raise ValueError(f"attention_dropout={dropout}: policies have none; set it to 0 or call model.eval()")
    else:
        out = policy_layer.attend(query, key, value, attention_mask, position_ids, scale)
    return out.transpose(1, 2), None


def _padding_mask(
    q_length: int, kv_length: int, attention_mask: Tensor | None = None, **unused: object
) -> Tensor | None:
    return attention_mask

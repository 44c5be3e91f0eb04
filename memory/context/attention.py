"""The attention function under which a model of transformers calls its policy.

Registered with transformers on first use. It asks for no mask of queries by keys: the padding mask of the
tokenizer comes through as it is.
"""

from __future__ import annotations

import functools
import threading
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from scrubjay.memory.context.parts.dense import causal_attention
from scrubjay.memory.context.parts.scoring import Scoring

ATTENTION = "scrubjay"
"""Name of the attention function in `config._attn_implementation`."""


class _Handed(threading.local):
    """The layer whose cache was updated last in this thread, for the attention function called next."""

    layer: Attends | None = None


_handed = _Handed()


@runtime_checkable
class Attends(Protocol):
    """One layer of a cache, which reads and keeps what its policy says."""

    def attend(
        self,
        query: Float[Tensor, "batch heads length width"],
        keys: Float[Tensor, "batch key_heads length width"],
        values: Float[Tensor, "batch key_heads length value_width"],
        mask: Tensor | None,
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads length value_width"]:
        """Return what the new tokens read.

        Args:
            query: Of the new tokens, as the model turned them.
            keys: Theirs.
            values: Theirs.
            mask: The tokenizer's padding mask, "batch columns"; None without padding.
            scoring: What the model does to scores.
        """
        ...


def hand_over(layer: Attends) -> None:
    """Let the attention function that is called next in this thread ask `layer`.

    Raises RuntimeError where the one handed over before was not asked.
    """
    if _handed.layer is not None:
        _handed.layer = None
        raise RuntimeError("the model attends in its own way and does not call the policy")
    _handed.layer = layer


def take_back() -> None:
    """Forget a layer that was handed over and not asked, as of a call that was broken off."""
    _handed.layer = None


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
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
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
        softcap: What scores are capped at.
        s_aux: Scores of no key, learned, one for each head.
        unused: What else transformers hands on.

    Raises:
        ValueError: on dropout with a policy.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scoring = Scoring(scale, softcap, s_aux)
    layer, _handed.layer = _handed.layer, None
    if layer is None:
        valid = None if attention_mask is None else attention_mask.bool()[:, -key.shape[2] :]
        out = causal_attention(query, key, value, valid, scoring, dropout)
    elif dropout:
        raise ValueError(f"attention_dropout={dropout}: policies have none; set it to 0 or call model.eval()")
    else:
        out = layer.attend(query, key, value, attention_mask, scoring)
    return out.transpose(1, 2), None


def _padding_mask(
    q_length: int, kv_length: int, attention_mask: Tensor | None = None, **unused: object
) -> Tensor | None:
    return attention_mask

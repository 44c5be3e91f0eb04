"""The attention function under which a model of transformers calls its policy.

Registered with transformers on first use. It asks for no mask of queries by keys: the padding mask of the
tokenizer comes through as it is.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from scrubjay.memory.context.parts.dense import causal_attention
from scrubjay.memory.context.parts.scoring import Scoring

ATTENTION = "scrubjay"
"""Name of the attention function in `config._attn_implementation`."""


WRAPPED = "scrubjay_layers"
"""Name of the attention function inside blocks of `memory.heads` that change or record attention."""

Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""`attention(module, query, key, value, mask, **options)`, as transformers calls it; heads are dimension
1."""

_KNOWN = {"position_ids", "cu_seq_lens_q", "cu_seq_lens_k"}
"""Tensors that models hand on to attention, and that say nothing but where tokens stand."""


class _Handed(threading.local):
    """What the attention function that is called next in this thread goes by."""

    layer: Attends | None = None
    """Whose cache was updated last."""
    reading: bool = False
    """Whether the thread is in a call of a model with a cache of ours."""


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


def check_not_wrapped(decoder: Any) -> None:
    """Raise ValueError inside a block that changes or records the model's own attention."""
    if decoder.config._attn_implementation == WRAPPED:
        raise ValueError(
            "sink_bias, capture_attention and sink_rate act on the model, whose attention a PolicyCache "
            "replaces, so they would have no effect; leave the block, or call the model with its own cache"
        )


def hand_over(layer: Attends) -> None:
    """Let the attention function that is called next in this thread ask `layer`.

    Raises RuntimeError where the one handed over before was not asked.
    """
    if _handed.layer is not None:
        _handed.layer = None
        raise RuntimeError("the model attends in its own way and does not call the policy")
    _handed.layer = layer


def read_by_policy(reading: bool) -> None:
    """Note that this thread's calls of the attention function come with layers of ours, or no longer do.

    A layer that was handed over and not asked, as of a call that was broken off, is forgotten.
    """
    _handed.layer, _handed.reading = None, reading


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
    **others: object,
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
        others: What else transformers hands on.

    Raises:
        ValueError: on dropout with a policy, and on a model that does to scores what is not known here, or
            attends otherwise than causally, or more often than it hands keys to its cache.
    """
    unknown = [name for name, value in others.items() if isinstance(value, Tensor) and name not in _KNOWN]
    if unknown:
        raise ValueError(
            f"{type(module).__name__} hands attention {unknown[0]}, of which no policy knows what it does to "
            "scores: use the model's own cache"
        )
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"{type(module).__name__} attends by a mask of its own, or lets tokens read later ones, "
            "where policies know of causal attention and of padding alone: use the model's own cache"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scoring = Scoring(scale, softcap, s_aux)
    layer, _handed.layer = _handed.layer, None
    if layer is None:
        if _handed.reading:
            raise ValueError(
                f"{type(module).__name__} attends to keys that it has not handed to its cache, or twice to "
                "them, of which a policy would see half: use the model's own cache"
            )
        valid = None if attention_mask is None else attention_mask.bool()[:, -key.shape[2] :]
        out = causal_attention(query, key, value, valid, scoring, dropout)
    elif dropout:
        raise ValueError(f"attention_dropout={dropout}: policies have none; set it to 0 or call model.eval()")
    else:
        out = layer.attend(query, key, value, attention_mask, scoring)
    # Some models view what others reshape.
    return out.transpose(1, 2).contiguous(), None


def _padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    q_offset: int = 0,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | None = None,
    **unused: object,
) -> Tensor | None:
    if q_length > 1:
        if device is not None and device.type == "meta":  # a trial without weights
            device = torch.device("cpu")
        row, token = (
            torch.arange(batch_size, device=device)[:, None],
            torch.arange(q_length - 1, device=device),
        )
        ahead = use_vmap or mask_function(row, 0, q_offset + token, q_offset + token + 1)
        if torch.as_tensor(ahead).any():
            # Whoever attends by it says so; one made for an encoder that there is not, nobody does.
            return torch.empty(0, 0, 0, 0)
    return attention_mask

"""Attention function through which a transformers model calls its context policy.

It is registered with transformers on first use. It needs no query-by-key mask: the tokenizer's padding mask
is passed through unchanged.
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
"""Name of the attention function inside `memory.heads` blocks that change or record attention."""

Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""Attention function of transformers: `attention(module, query, key, value, mask, **options)`.

Heads are dimension 1."""

_POSITION_TENSORS = {"position_ids", "cu_seq_lens_q", "cu_seq_lens_k"}
"""Names of tensor arguments that only carry token positions and may be ignored."""


class _ThreadState(threading.local):
    """Thread-local state that the next call of the attention function uses."""

    layer: AttentionLayer | None = None
    """Layer whose cache was updated last; None if no call is pending."""
    reading: bool = False
    """True inside a model call with a `PolicyCache`."""


_thread_state = _ThreadState()


@runtime_checkable
class AttentionLayer(Protocol):
    """Protocol of a cache layer that computes attention under its policy."""

    def attend(
        self,
        query: Float[Tensor, "batch heads length width"],
        keys: Float[Tensor, "batch key_heads length width"],
        values: Float[Tensor, "batch key_heads length value_width"],
        mask: Tensor | None,
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads length value_width"]:
        """Return the attention output of the new tokens.

        Args:
            query: Queries of the new tokens, already rotated by the model.
            keys: Keys of the new tokens, already rotated by the model.
            values: Values of the new tokens.
            mask: The tokenizer's padding mask, "batch columns"; None without padding.
            scoring: The model's scale, soft cap and learned sinks.
        """
        ...


def check_not_wrapped(decoder: Any) -> None:
    """Raise ValueError inside a block that changes or records the model's own attention."""
    if decoder.config._attn_implementation == WRAPPED:
        raise ValueError(
            "sink_bias, capture_attention and sink_rate act on the model's own attention, which a "
            "PolicyCache replaces, so they would have no effect; leave the block, or call the model with its "
            "own cache"
        )


def set_next_layer(layer: AttentionLayer) -> None:
    """Set the layer that the next call of the attention function in this thread uses.

    Raises RuntimeError if the layer set before was not used.
    """
    if _thread_state.layer is not None:
        _thread_state.layer = None
        raise RuntimeError("the model uses its own attention function and does not call the policy")
    _thread_state.layer = layer


def set_reading(reading: bool) -> None:
    """Set whether this thread is in a model call with a `PolicyCache`.

    Discards a pending layer, as left behind by an interrupted call.
    """
    _thread_state.layer, _thread_state.reading = None, reading


@functools.cache
def register_attention() -> None:
    """Register the attention function with transformers."""
    AttentionInterface.register(ATTENTION, policy_attention)
    AttentionMaskInterface.register(ATTENTION, _padding_mask)


def policy_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch key_heads columns width"],
    value: Float[Tensor, "batch key_heads columns value_width"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    **others: object,
) -> tuple[Float[Tensor, "batch length heads value_width"], None]:
    """Return the attention output of the tokens under their policy; without a policy, causal attention.

    Parameters have the order of transformers' SDPA function, because packages that wrap every attention
    function pass them by position.

    Args:
        module: The model's attention layer.
        query: Queries of the new tokens.
        key: Keys of the new tokens with a policy, of all tokens without one.
        value: Values, like `key`.
        attention_mask: The tokenizer's padding mask, "batch columns".
        dropout: Attention dropout; must be 0 with a policy.
        scaling: Scale of the scores; by default one over the square root of the head width.
        softcap: Soft cap of the scores.
        s_aux: Learned attention sinks, one score per head.
        others: Further arguments of transformers.

    Raises:
        ValueError: on dropout with a policy, on a model whose scores depend on unknown tensors, on non-causal
            attention, and on a model that attends more often than it updates its cache.
    """
    unknown = [
        name for name, value in others.items() if isinstance(value, Tensor) and name not in _POSITION_TENSORS
    ]
    if unknown:
        raise ValueError(
            f"{type(module).__name__} passes {unknown[0]} to its attention function, which policies do not "
            "support: use the model's own cache"
        )
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"{type(module).__name__} uses a custom or non-causal attention mask; policies support only "
            "causal attention with padding: use the model's own cache"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scoring = Scoring(scale, softcap, s_aux)
    layer, _thread_state.layer = _thread_state.layer, None
    if layer is None:
        if _thread_state.reading:
            raise ValueError(
                f"{type(module).__name__} attends to keys that are not in its cache, or attends twice to one "
                "cache update, which policies do not support: use the model's own cache"
            )
        valid = None if attention_mask is None else attention_mask.bool()[:, -key.shape[2] :]
        out = causal_attention(query, key, value, valid, scoring, dropout)
    elif dropout:
        raise ValueError(
            f"attention_dropout={dropout}: policies do not support it; set it to 0 or call model.eval()"
        )
    else:
        out = layer.attend(query, key, value, attention_mask, scoring)
    # Some models call `view` on the output, which needs contiguous memory.
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
    **ignored_options: object,
) -> Tensor | None:
    if q_length > 1:
        if device is not None and device.type == "meta":  # a check without weights
            device = torch.device("cpu")
        row, token = (
            torch.arange(batch_size, device=device)[:, None],
            torch.arange(q_length - 1, device=device),
        )
        ahead = use_vmap or mask_function(row, 0, q_offset + token, q_offset + token + 1)
        if torch.as_tensor(ahead).any():
            # The 4-d mask makes `policy_attention` raise. A mask made for a missing encoder is never used.
            return torch.empty(0, 0, 0, 0)
    return attention_mask

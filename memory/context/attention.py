"""Calls of a context policy by a transformers model: an attention function and two hooks.

The function is registered with transformers on first use. It needs no query-by-key mask: transformers passes
the tokenizer's padding mask to the function unchanged. The hooks select the function while a model runs with
a `PolicyCache`, and restore the model's config afterwards.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from scrubjay.memory.context.policies.dense import Scoring, causal_attention

ATTENTION = "scrubjay"
"""Name of the attention function in `config._attn_implementation`."""
WRAPPED = "scrubjay_layers"
"""Name of the attention function inside `wrapped_attention` blocks that change or record attention."""

Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""Attention function of transformers: `attention(module, query, key, value, mask, **options)`.

Heads are dimension 1."""

_POSITION_TENSORS = {"position_ids", "cu_seq_lens_q", "cu_seq_lens_k"}
"""Names of tensor arguments that only carry token positions and may be ignored."""


class _ThreadState(threading.local):
    """Thread-local state that the next call of the attention function uses."""

    layer: AttentionLayer | None = None
    """Cache layer for the next call of the attention function; None if no call is pending."""
    reading: bool = False
    """True inside a model call with a `PolicyCache`."""
    inputs: tuple[nn.Module, Tensor | None] | None = None
    """Attention layer that runs now, and its inputs; None unless `record_inputs` watches the model."""
    masks: list[tuple[Tensor, Callable[..., Tensor]]] | None = None
    """Masks of the current call and their functions, inside a `record_mask_functions` block."""


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
            mask: The tokenizer's mask of past and new tokens, "batch tokens"; None without padding.
            scoring: The model's scale, soft cap and learned sinks.
        """
        ...


def check_not_wrapped(module: nn.Module) -> None:
    """Raise ValueError inside a `with` block that changes or records the model's own attention."""
    if _config_of(module)._attn_implementation == WRAPPED:
        raise ValueError(
            "a PolicyCache replaces the model's own attention, so sink_bias, capture_attention and sink_rate "
            "would have no effect; call the model outside their `with` block, or with the model's own cache"
        )


def _config_of(module: Any) -> Any:
    # A model that also reads images has another config for its text.
    config = module.config
    return config.get_text_config(decoder=True) if config.sub_configs else config


def set_next_layer(layer: AttentionLayer) -> None:
    """Set the cache layer for the next call of the attention function in this thread.

    Raises RuntimeError if the attention function was not called since the previous `set_next_layer`.
    """
    if _thread_state.layer is not None:
        _thread_state.layer = None
        raise RuntimeError(
            "the model computes attention in its own code and does not call the policy: use the model's own "
            "cache"
        )
    _thread_state.layer = layer


def set_reading(reading: bool) -> None:
    """Mark the start (True) or the end (False) of a model call with a `PolicyCache` in this thread.

    An interrupted call may leave behind a layer that `set_next_layer` set. This function removes that layer.
    """
    _thread_state.layer, _thread_state.reading, _thread_state.inputs = None, reading, None


def record_inputs(decoder: nn.Module) -> None:
    """Make the attention layers of a decoder pass their inputs to the attention function."""
    for module in decoder.modules():
        if (
            type(module).__name__.endswith("Attention")
            and _record_inputs not in module._forward_pre_hooks.values()
        ):
            module.register_forward_pre_hook(_record_inputs, with_kwargs=True)


def _record_inputs(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    if _thread_state.reading:
        _thread_state.inputs = module, args[0] if args else options.get("hidden_states")


def _take_inputs(module: nn.Module) -> Tensor | None:
    inputs, _thread_state.inputs = _thread_state.inputs, None
    return inputs[1] if inputs is not None and inputs[0] is module else None


@contextmanager
def record_mask_functions(masks: list[tuple[Tensor, Callable[..., Tensor]]]) -> Iterator[None]:
    """Append all masks of model calls inside the `with` block to `masks`, with their functions.

    A mask function takes row, head, query and key indices, and returns True if the query sees the key.
    """
    _thread_state.masks = masks
    try:
        yield
    finally:
        _thread_state.masks = None


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
    """Return the output of the active policy's attention, or of causal attention if no policy is active.

    The parameters have the same order as those of transformers' SDPA attention function. Some packages wrap
    every attention function and pass all arguments by position.

    Args:
        module: The model's attention layer.
        query: Queries of the new tokens.
        key: Keys of the new tokens if a policy is active, of all tokens if not.
        value: Values of the same tokens as `key`.
        attention_mask: The tokenizer's mask of past and new tokens, "batch tokens"; None without padding.
        dropout: Attention dropout; must be 0 if a policy is active.
        scaling: Scale of the scores. Default: one over the square root of the head width.
        softcap: Soft cap of the scores.
        s_aux: Learned attention sinks, one score per head.
        others: Other arguments that transformers passes. Only unknown tensors are rejected.

    Raises:
        ValueError: if a policy is active and `dropout` is not 0, if `others` has an unknown tensor, if the
            attention is not causal, or if the model attends more often than it updates its cache.
    """
    unknown = [
        name for name, value in others.items() if isinstance(value, Tensor) and name not in _POSITION_TENSORS
    ]
    if unknown:
        raise ValueError(
            f"{type(module).__name__} passes the tensor {unknown[0]!r} to its attention function; policies "
            "do not support this tensor: use the model's own cache"
        )
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"{type(module).__name__} uses a custom or non-causal attention mask; policies support only "
            "causal attention with padding: use the model's own cache"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scoring = Scoring(scale, softcap, s_aux, module, _take_inputs(module))
    layer, _thread_state.layer = _thread_state.layer, None
    if layer is None:
        if _thread_state.reading:
            raise ValueError(
                f"{type(module).__name__} attends to keys that are not in its cache, or attends twice after "
                "one cache update; policies support neither: use the model's own cache"
            )
        valid = None if attention_mask is None else attention_mask.bool()[:, -key.shape[2] :]
        out = causal_attention(query, key, value, valid, scoring, dropout)
    elif dropout:
        raise ValueError(
            f"attention_dropout={dropout}: must be 0 with a policy; set it to 0 or call model.eval()"
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
        # With `use_vmap` tokens of a block, such as an image, see each other, the next token included.
        try:
            ahead = torch.as_tensor(mask_function(row, 0, q_offset + token, q_offset + token + 1)).any()
        except (IndexError, RuntimeError):
            if not use_vmap:
                raise
            ahead = True
        if ahead:
            # The 4-d mask makes `policy_attention` raise. A mask made for a missing encoder is never used.
            return torch.empty(0, 0, 0, 0)
    if _thread_state.masks is not None:
        # A mask of its own for each kind of layer.
        ones = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
        attention_mask = ones if attention_mask is None else attention_mask.clone()
        _thread_state.masks.append((attention_mask, mask_function))
    return attention_mask


_OTHER_INPUTS = ("pixel_values", "pixel_values_videos", "input_features")
"""Arguments of models that also read images, videos or sound."""

# Policy caches in use by each model, by thread id. All caches of a model have the same `outside_attention`.
_active_caches: WeakKeyDictionary[nn.Module, dict[int, Any]] = WeakKeyDictionary()
LOCK = threading.Lock()
"""Lock around changes of a model's attention implementation."""


def attend_by_policy(entry: nn.Module) -> str | None:
    """Install hooks so that calls of a model with a `PolicyCache` use its policy.

    `entry` is the module that gets the cache first and makes the attention masks. Returns the attention
    implementation of calls without a `PolicyCache`. Raises ValueError inside a `with` block that changes or
    records the model's own attention.
    """
    register_attention()
    if _enter not in entry._forward_pre_hooks.values():
        entry.register_forward_pre_hook(_enter, with_kwargs=True)
        entry.register_forward_hook(_leave, always_call=True)
    with LOCK:
        check_not_wrapped(entry)
        return _find_outside_attention(entry)


def _find_outside_attention(entry: nn.Module) -> str | None:
    config = _config_of(entry)
    caches = _active_caches.get(entry)
    return next(iter(caches.values())).outside_attention if caches else config._attn_implementation


def _enter(entry: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    # A call interrupted by Ctrl-C has not run its post hook.
    _leave(entry)
    caches = (each for each in (*args, *options.values()) if hasattr(each, "outside_attention"))
    cache = next(caches, None)
    if cache is None:
        return None
    positions = _position_ids(entry, args, options)
    inputs: Any = next(
        x for x in (*args[:1], options.get("input_ids"), options.get("inputs_embeds")) if x is not None
    )
    if positions is None and cache.adds_position_ids and len(args) < 2:
        past_length = cache.get_seq_length()
        positions = torch.arange(past_length, past_length + inputs.shape[1], device=inputs.device)[None]
        options = options | {"position_ids": positions}
    unread = [name for name in _OTHER_INPUTS if options.get(name) is not None]
    if unread and cache.policy is not None and cache.policy.reads_twice:
        raise ValueError(
            f"{type(cache.policy).__name__} reads every prompt twice, from its token ids, so it cannot read "
            f"{unread[0]}; use another policy"
        )
    cache.begin_call(positions, inputs)
    config = _config_of(entry)
    with LOCK:
        check_not_wrapped(entry)
        current_attention = _find_outside_attention(entry)
        if current_attention != cache.outside_attention:
            raise RuntimeError(
                f"the model uses attention {current_attention!r}, so it does not call the policy; build the "
                "cache for this model, after all calls of set_attn_implementation"
            )
        _active_caches.setdefault(entry, {})[threading.get_ident()] = cache
        config._attn_implementation = ATTENTION
    set_reading(True)
    return args, options


def _position_ids(entry: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if "position_ids" in options or len(args) < 2:
        return options.get("position_ids")
    return inspect.signature(entry.forward).bind_partial(*args, **options).arguments.get("position_ids")


def _leave(entry: nn.Module, _: Any = None, output: Any = None) -> None:
    config = _config_of(entry)
    set_reading(False)
    with LOCK:
        caches = _active_caches.get(entry, {})
        cache = caches.pop(threading.get_ident(), None)
        if cache is None:
            return
        if not caches:
            config._attn_implementation = cache.outside_attention
    if output is not None:
        cache.end_call(entry)

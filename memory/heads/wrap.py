"""Wrap the attention of single layers of a transformers model inside a `with` block.

Transformers looks up the attention function by name in its AttentionInterface. This module registers one
function there. It runs the wrappers of the current layer around SDPA; layers without wrappers run plain SDPA.
After the block the model has its former attention function. A `PolicyCache` raises an error inside the block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from scrubjay.memory.context.attention import ATTENTION, WRAPPED, Attention
from scrubjay.memory.context.layers.falcon import falcon_attention, falcon_modules
from scrubjay.memory.context.parts.dense import causal_attention, masked_attention
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.switch import LOCK

Wrapper = Callable[..., tuple[Tensor, Tensor | None]]
"""Wrapper `wrapper(attention, module, query, key, value, mask, **options)`, which calls `attention`."""

_wrappers: WeakKeyDictionary[nn.Module, list[Wrapper]] = WeakKeyDictionary()


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Return the softmax attention modules of a decoder by layer index, lowest first."""
    attention_layers = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    layers = {getattr(module, "layer_idx", None): module for module in attention_layers}
    return {layer: layers[layer] for layer in sorted(layer for layer in layers if isinstance(layer, int))}


@contextmanager
def wrapped_attention(model: PreTrainedModel, wrappers: Mapping[int, Wrapper]) -> Iterator[None]:
    """Run each layer's wrapper around its attention inside a `with` block. These blocks can be nested.

    Raises ValueError for a layer that the model does not have, and for a model whose attention function
    cannot be replaced.
    """
    modules = attention_modules(model)
    unknown = sorted(set(wrappers) - set(modules))
    if unknown:
        raise ValueError(f"layers {unknown}: the model has attention in layers {sorted(modules)}")
    _register()
    installed_wrappers = []
    with _replace_attention(model):
        try:
            for layer, wrapper in wrappers.items():
                installed_wrappers.append((_wrappers.setdefault(modules[layer], []), wrapper))
                installed_wrappers[-1][0].append(wrapper)
            yield
        finally:
            for wrapper_list, wrapper in installed_wrappers:
                wrapper_list.remove(wrapper)


@contextmanager
def _replace_attention(model: PreTrainedModel) -> Iterator[None]:
    """Make the model use this module's attention function inside a `with` block."""
    attends_itself = not model._can_set_attn_implementation() and bool(falcon_modules(model))

    def choose(name: str) -> None:
        if attends_itself:  # a `PolicyCache` sees from the name that its policy is not called
            model.config._attn_implementation = name
        else:
            model.set_attn_implementation(name)

    with LOCK:
        before = _attention_of(model)
        choose(WRAPPED)
    try:
        if model.config._attn_implementation != WRAPPED:
            raise ValueError(
                f"{type(model).__name__} does not support transformers' AttentionInterface, so its attention "
                "cannot be wrapped; use another model"
            )
        with falcon_attention(model, _attend) if attends_itself else nullcontext():
            yield
    finally:
        choose(before)


def _attention_of(model: PreTrainedModel) -> str:
    """Return the name of a model's attention function; raise RuntimeError while a `PolicyCache` is active."""
    name = str(model.config._attn_implementation)
    if name == ATTENTION:
        raise RuntimeError(
            "another thread runs this model with a PolicyCache; wrap its attention after that call has ended"
        )
    return name


@functools.cache
def _register() -> None:
    AttentionInterface.register(WRAPPED, _attend)
    AttentionMaskInterface.register(WRAPPED, sdpa_mask)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    return _nest(_softmax_attention, _wrappers.get(module, []))(
        module, query, key, value, mask, dropout=dropout, **options
    )


def _softmax_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return the attention output, computed by SDPA if possible.

    SDPA supports neither soft caps nor learned sinks. For these the attention weights are computed
    explicitly.
    """
    scoring = Scoring(scaling, softcap, s_aux)
    if scoring.is_plain:
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **options
        )
    if mask is None:
        return causal_attention(query, key, value, None, scoring, dropout).transpose(1, 2), None
    return masked_attention(query, key, value, mask[:, 0], scoring, dropout).transpose(1, 2), None


def _nest(attention: Attention, wrappers: list[Wrapper]) -> Attention:
    """Return `attention` inside the wrappers; the first wrapper is the outermost."""
    if not wrappers:
        return attention
    first, rest = wrappers[0], wrappers[1:]
    return lambda *tensors, **options: first(_nest(attention, rest), *tensors, **options)

"""Probe of a model on a single token: what its layers store, and which tokens they attend to.

Model families implement attention differently, so the probe does not rely on their code. It runs the model
with a cache that records keys, queries and the mask function of every layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from scrubjay.memory.context.attention import (
    attend_by_policy,
    record_mask_functions,
    set_next_layer,
)
from scrubjay.memory.context.layers.layer_types import LayerType
from scrubjay.memory.context.policies.dense import Scoring

_OWN_CACHE = "use the model's own cache"
_FAR = 1 << 20
"""Number of windows of text before the query for which a mask function is evaluated."""


def decoder_of(model: PreTrainedModel) -> Any:
    """Return the submodel with the attention layers.

    This is `get_decoder()`, except for models in which `get_decoder()` returns only the last layer.
    """
    decoder = model.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model


def entry_of(model: PreTrainedModel) -> Any:
    """Return the submodel that gets the cache first and makes the attention masks.

    This is the decoder, except for models that also read images, such as Gemma 3.
    """
    decoder, base = decoder_of(model), model.base_model
    return base if base.config is not decoder.config and takes_positions(base) else decoder


def takes_positions(entry: nn.Module) -> bool:
    """Return True if a submodel accepts `position_ids`."""
    return "position_ids" in inspect.signature(entry.forward).parameters


def check_update(layer: int, updated_layers: Container[int], attends: bool) -> None:
    """Raise ValueError if a model updates a layer for the second time in a call, or a layer without keys."""
    if layer in updated_layers:
        raise ValueError(
            f"the model runs layer {layer} twice in one call, as looped models do; a policy would count the "
            f"tokens of the second run as new tokens: {_OWN_CACHE}"
        )
    if not attends:
        raise ValueError(
            f"the model attends in layer {layer}, but its config does not list this layer as attention: "
            f"{_OWN_CACHE}"
        )


class Probe(DynamicCache):
    """Cache that records what every layer does. It is also the layer that attends next."""

    adds_position_ids = False
    policy = None

    def __init__(self, config: Any, outside_attention: str | None) -> None:
        super().__init__(config=config)
        self.outside_attention = outside_attention
        self.keys: dict[int, Tensor] = {}
        self.queries: dict[int, Tensor] = {}
        # Mask functions of the layers that got a mask of `record_mask_functions`.
        self.mask_functions: dict[int, Callable[..., Any] | None] = {}
        self.masks: list[tuple[Tensor, Callable[..., Any]]] = []
        self._next_layer = 0

    def begin_call(self, position_ids: Tensor | None, inputs: Tensor) -> None:
        """Do nothing."""

    def end_call(self, entry: nn.Module) -> None:
        """Do nothing."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Record the new keys of layer `layer_idx`, then store keys and values as `DynamicCache` does."""
        check_update(layer_idx, self.keys, layer_idx < len(self.layers))
        self.keys[layer_idx] = _to_cpu(key_states)
        self._next_layer = layer_idx
        set_next_layer(self)
        return super().update(key_states, value_states, layer_idx, *args, **options)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scoring: Scoring
    ) -> Tensor:
        """Record the query of the layer that was updated last, and return the token's own values.

        Learned sinks are ignored. Their weight depends on a score, so the rounding error of the score would
        reach later layers.
        """
        self.queries[self._next_layer] = _to_cpu(query)
        if mask is not None:
            self.mask_functions[self._next_layer] = next((f for x, f in self.masks if x is mask), None)
        own_values = values[:, :, -query.shape[2] :]
        return own_values.repeat_interleave(query.shape[1] // values.shape[1], dim=1)


_first_probes: WeakKeyDictionary[nn.Module, Probe] = WeakKeyDictionary()


def read_single_token(model: PreTrainedModel, position: int) -> Probe:
    """Return the record of a single token at `position`.

    Raises ValueError if the model runs only with a cache of its own.
    """
    if position == 0 and model in _first_probes:
        return _first_probes[model]
    entry = entry_of(model)
    config = model.config.get_text_config(decoder=True)
    probe = Probe(config, attend_by_policy(entry))
    # The embedding of the padding token is zero, so another token is used.
    token = torch.full((1, 1), int(getattr(config, "pad_token_id", None) == 0), device=model.device)
    options = {"position_ids": torch.full_like(token, position)} if takes_positions(entry) else {}
    training = [module for module in entry.modules() if module.training]
    with torch.no_grad():
        entry.eval()
        try:
            with record_mask_functions(probe.masks):
                entry(token, cache=probe, use_cache=True, **options)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError) as error:
            # An error without any cache is not about the cache.
            entry(token, use_cache=False, **options)
            raise ValueError(
                f"{type(model).__name__} does not run with a cache other than its own "
                f"({type(error).__name__}: {error}): {_OWN_CACHE}"
            ) from error
        finally:
            for module in training:
                module.training = True
    if position == 0:
        _first_probes[model] = probe
    return probe


def check_layers(model: PreTrainedModel, layer_types: Sequence[LayerType]) -> None:
    """Raise ValueError unless a model's layers attend as their types say.

    The first call runs the model on a single token.
    """
    name, probe = type(model).__name__, read_single_token(model, 0)
    for index, layer_type in enumerate(layer_types):
        if not layer_type.attends:
            continue
        if index not in probe.keys:
            raise ValueError(
                f"layer {index} of {name} stores no keys in its cache, but its config lists this layer as "
                f"attention: {_OWN_CACHE}"
            )
        function = probe.mask_functions.get(index)
        if function is None:
            continue
        if _sees(function, _FAR, _FAR + 1, model.device):
            raise ValueError(
                f"{name} uses a custom or non-causal attention mask; policies support only causal attention "
                f"with padding: {_OWN_CACHE}"
            )
        if not _fits(function, layer_type, model.device):
            raise ValueError(
                f"the config of {name} gives layer {index} {_describe(layer_type)}, but the layer attends to "
                "other tokens, and a cache would drop tokens that the layer reads: correct the settings "
                "sliding_window, attention_chunk_size and layer_types of the config, or use no cache"
            )


def _describe(layer_type: LayerType) -> str:
    if layer_type.window is None:
        return "full attention"
    return f"{'chunks' if layer_type.is_chunked else 'a window'} of {layer_type.window} tokens"


def _fits(function: Callable[..., Any], layer_type: LayerType, device: torch.device) -> bool:
    """Return False if a mask function of transformers is not that of a layer type."""

    def sees(query: int, key: int) -> bool | None:
        return _sees(function, query, key, device)

    size = layer_type.window or 1
    last = _FAR * size + size - 1  # the last token of a chunk
    if layer_type.window is None:
        return sees(last, 0) is not False
    in_window = sees(last, last - size + 1) is not False and not sees(last, last - size)
    return in_window and (size == 1 or sees(last + 1, last) is not layer_type.is_chunked)


def _sees(function: Callable[..., Any], query: int, key: int, device: torch.device) -> bool | None:
    """Return True if a query sees a key; None if this depends on the text, as in a mask of images."""
    is_meta = device.type == "meta"  # a check without weights, where a padding mask has no values
    row, *tokens = (torch.tensor([x], device="cpu" if is_meta else device) for x in (0, query, key))
    with suppress(IndexError, *[RuntimeError] * is_meta):
        return bool(torch.as_tensor(function(row, 0, *tokens)).all())
    return None


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.is_meta else tensor.detach().cpu()

"""How the layers of a model turn their keys by position: found by trying, for every family has its own way.

One token is read alone at two positions. It attends to itself, whatever its position, and so all that differs
between the two readings, in any layer, is how far its key was turned. So must its query be, but for a factor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from scrubjay.memory.context.attention import hand_over
from scrubjay.memory.context.layers.falcon import serve_falcon
from scrubjay.memory.context.parts.dense import causal_attention
from scrubjay.memory.context.parts.rotary import Layout, Rotary, Turn
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.switch import attend_by_policy

_FAR = 101
"""A position at which fast and slow pairs have turned differently, and far from whole rounds.

Of models with fewer positions the last.
"""


class Turns(NamedTuple):
    """How a model turns, layer by layer."""

    by_layer: tuple[Rotary | None, ...]
    """One object for all layers that are turned alike; None in layers without keys, or of another way."""
    sizes: dict[int, tuple[int, int]]
    """Heads and width of the keys of layers that have keys."""
    kinds: int
    """How many kinds of rotary positions the model has."""
    changing: str | None
    """The kind of rotary positions whose angles change with the length of the text, if there is one."""


_found: WeakKeyDictionary[nn.Module, Turns] = WeakKeyDictionary()


def decoder_of(model: PreTrainedModel) -> Any:
    """Return the part of a model that attends; some call their last layer their decoder."""
    decoder = model.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model


def takes_positions(decoder: nn.Module) -> bool:
    """Return whether a decoder can be told where tokens stand."""
    return "position_ids" in inspect.signature(decoder.forward).parameters


def has_rotary(decoder: nn.Module) -> bool:
    """Return whether a decoder has rotary positions of a kind that is known."""
    return next(_ways(decoder), None) is not None


def turns_of(model: PreTrainedModel) -> Turns:
    """Return how the layers of a model turn their keys; tried out once."""
    if model not in _found:
        _found[model] = _try(model)
    return _found[model]


def _try(model: PreTrainedModel) -> Turns:
    decoder = decoder_of(model)
    config = model.config.get_text_config(decoder=True)
    count = config.num_hidden_layers
    positions = getattr(config, "max_position_embeddings", None) or _FAR + 1
    away = min(_FAR, positions - 1)
    (at_zero, asked_at_zero), (far, asked_far) = (_read_alone(model, position) for position in (0, away))
    told = takes_positions(decoder)
    ways = list(_ways(decoder))
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    made: dict[tuple[int, Layout], Rotary] = {}
    still = Rotary(Layout(0), lambda: torch.zeros(0), dtype)

    def rotary(layer: int) -> Rotary | None:
        if layer not in at_zero or not told:
            return None
        before, after = at_zero[layer].double(), far[layer].double()
        largest = float(before.abs().max())
        if before.shape != after.shape or before.ndim != 4 or not largest:  # of zeros nobody sees a turn
            return None
        error = max(8 * torch.finfo(at_zero[layer].dtype).eps, 1e-4)
        tolerance = error * largest
        asked = asked_at_zero.get(layer, before).double(), asked_far.get(layer, after).double()
        if float((after - before).abs().max()) <= tolerance:
            return still if _are_parallel(*asked, error) else None
        for number, way in enumerate(ways):
            for layout in _layouts(way().shape[-1], before.shape[-1]):
                angle = away * way().double().cpu()
                turn = Turn(angle.cos(), angle.sin(), layout)
                if float((turn(before) - after).abs().max()) <= tolerance and _are_parallel(
                    turn(asked[0]), asked[1], error
                ):
                    return made.setdefault((number, layout), Rotary(layout, way, dtype))
        return None

    kinds = {kind for module in decoder.modules() for kind in _kinds(module)}
    changing = next(iter(kinds & {"dynamic", "longrope"}), None)
    sizes = {layer: (keys.shape[1], keys.shape[-1]) for layer, keys in far.items()}
    return Turns(tuple(rotary(layer) for layer in range(count)), sizes, len(ways), changing)


def _layouts(pairs: int, width: int) -> Iterator[Layout]:
    if 2 * pairs <= width:
        yield from (Layout(pairs, neighbours) for neighbours in (False, True))


def _ways(decoder: nn.Module) -> Iterator[Callable[[], Tensor]]:
    """Yield what returns the frequencies of each kind of rotary positions that a decoder has."""
    for module in decoder.modules():
        for name, _ in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and not name.endswith("original_inv_freq"):
                yield lambda module=module, name=name: getattr(module, name)


def _kinds(module: nn.Module) -> set[str]:
    kind = getattr(module, "rope_type", None)
    kinds = kind.values() if isinstance(kind, dict) else [kind]
    return {kind for kind in kinds if isinstance(kind, str)}


def _are_parallel(x: Tensor, y: Tensor, error: float) -> bool:
    """Return whether vectors of heads are alike, but for a factor each: some models scale by position."""
    factor = (x * y).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True).clamp(min=1e-30)
    return float((y - factor * x).abs().max()) <= error * float(y.abs().max())


class _Noting(DynamicCache):
    """A cache that notes the keys that layers hand it, and the queries that they read them by."""

    places = False

    def __init__(self, config: Any, elsewhere: str | None) -> None:
        super().__init__(config=config)
        self.attends_elsewhere = elsewhere
        self.keys: dict[int, Tensor] = {}
        self.queries: dict[int, Tensor] = {}

    def begin_call(self, position_ids: Tensor | None, length: int) -> None:
        """Do nothing."""

    def end_call(self) -> None:
        """Do nothing."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Note, and do as ever."""
        self.keys[layer_idx] = key_states.detach().cpu()
        hand_over(_Asked(self, layer_idx))
        return super().update(key_states, value_states, layer_idx, *args, **options)


class _Asked(NamedTuple):
    """A layer whose attention function is called next."""

    cache: _Noting
    index: int

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scoring: Scoring
    ) -> Tensor:
        """Note, and return what one token reads of itself."""
        self.cache.queries[self.index] = query.detach().cpu()
        return causal_attention(query, keys, values, None, scoring)


def _read_alone(model: PreTrainedModel, position: int) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return what key each layer makes of a token that stands alone at a position, and what query."""
    decoder = decoder_of(model)
    config = model.config.get_text_config(decoder=True)
    serve_falcon(decoder)
    cache = _Noting(config, attend_by_policy(decoder))
    # Of the one for padding all is zero.
    token = torch.full((1, 1), int(getattr(config, "pad_token_id", None) == 0), device=model.device)
    options = {"position_ids": torch.full_like(token, position)} if takes_positions(decoder) else {}
    training = [module for module in decoder.modules() if module.training]
    with torch.no_grad():
        decoder.eval()
        try:
            decoder(token, cache=cache, use_cache=True, **options)
        finally:
            for module in training:
                module.training = True
    return cache.keys, cache.queries

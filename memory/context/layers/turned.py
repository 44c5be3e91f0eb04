"""How the layers of a model turn their keys by position: found by trying, for every family has its own way.

One token is read alone at two positions. It attends to itself, whatever its position, and so all that differs
between the two readings, in any layer, is how far its key was turned. So must its query be, but for a factor.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from scrubjay.memory.context.attention import hand_over
from scrubjay.memory.context.layers.falcon import serve_falcon
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
    choices = [lambda: torch.zeros(0), *ways]  # the first for layers without positions: no pair turns
    made: dict[tuple[int, Layout], Rotary] = {}

    def rotary(layer: int) -> Rotary | None:
        if layer not in at_zero or not told:
            return None
        before, after = at_zero[layer].double(), far[layer].double()
        if before.shape != after.shape or before.ndim != 4 or not before.any():  # of zeros nobody sees a turn
            return None
        queries = asked_at_zero.get(layer, before).double(), asked_far.get(layer, after).double()
        rounding = _Rounding.of(at_zero[layer].dtype)
        errors: dict[tuple[int, Layout], float] = {}
        for number, way in enumerate(choices):
            for layout in _layouts(way().shape[-1], before.shape[-1]):
                angle = away * way().double().cpu()
                turn = Turn(angle.cos(), angle.sin(), layout)
                error = max(
                    rounding.error(turn(before), after, layout),
                    rounding.error(_scaled(turn(queries[0]), queries[1]), queries[1], layout),
                )
                if error <= 1:
                    errors[number, layout] = error
        if not errors:
            return None
        number, layout = best = min(errors, key=errors.__getitem__)
        return made.setdefault(best, Rotary(layout, choices[number], dtype))

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


class _Rounding(NamedTuple):
    """Bound on the error of a rotation in a model's precision, for each pair of coordinates.

    Trained models have channels a hundred times as large as others. Measured against those, the rotation of
    all other pairs would pass for rounding.
    """

    relative: float
    """Part of a pair's length."""
    absolute: float
    """Error of numbers too small to be normal ones."""

    @classmethod
    def of(cls, dtype: torch.dtype) -> Self:
        """Return the bounds for a dtype."""
        kind = torch.finfo(dtype)
        # Angles are float32 in any model. Rounding cosines, products and their sum makes less than 3 eps.
        return cls(max(4 * kind.eps, 1e-4), 4 * kind.smallest_normal * kind.eps)

    def error(self, expected: Tensor, found: Tensor, layout: Layout) -> float:
        """Return the largest difference as a multiple of its bound; NaN and infinities exceed any."""
        paired = layout.together(expected)
        pairs = paired[..., : 2 * layout.pairs].unflatten(-1, (layout.pairs, 2)).norm(dim=-1)
        lengths = torch.cat([pairs.repeat_interleave(2, -1), paired[..., 2 * layout.pairs :].abs()], dim=-1)
        bound = self.relative * layout.apart(lengths) + self.absolute
        return float(((found - expected).abs() / bound).nan_to_num(nan=math.inf).max())


def _scaled(x: Tensor, y: Tensor) -> Tensor:
    """Return `x`, each head times the factor that brings it nearest to `y`: some models scale by position."""
    return x * (x * y).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True).clamp(min=1e-30)


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
        """Note the query, and return the token's own values.

        Learned sinks are left out: their weight would carry the rounding of a score into later layers.
        """
        self.cache.queries[self.index] = query.detach().cpu()
        own = values[:, :, -query.shape[2] :]
        return own.repeat_interleave(query.shape[1] // values.shape[1], dim=1)


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

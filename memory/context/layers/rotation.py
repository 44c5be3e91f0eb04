"""Rotary positions of a model's layers, measured by a probe of the model.

Model families implement rotary positions differently, so the probe does not rely on their code. It runs the
model on a single token at two positions. The token attends only to itself, so in every layer the keys of the
two runs differ only by a rotation. The queries must differ by the same rotation, up to a factor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scrubjay.memory.context.layers.probe import decoder_of, entry_of, read_single_token, takes_positions
from scrubjay.memory.context.policies.base import ContextPolicy
from scrubjay.memory.context.policies.rotary import PairLayout, Rotary, Rotation

_FAR = 101
"""Probe position at which fast and slow pairs have clearly different angles, far from full turns.

Models with fewer positions are probed at their last position.
"""


class ModelRotation(NamedTuple):
    """Rotary positions of a model by layer."""

    by_layer: tuple[Rotary | None, ...]
    """Rotary positions of each layer; None for a layer without keys or with unknown positions.

    Layers with equal rotary positions share one object."""
    sizes: dict[int, tuple[int, int]]
    """(number of key heads, key width) of each layer with keys, by layer index."""
    num_types: int
    """Number of rotary embeddings that the model has."""
    dynamic_type: str | None
    """RoPE type whose angles depend on the length of the text; None if there is none."""


_rotations: WeakKeyDictionary[nn.Module, ModelRotation] = WeakKeyDictionary()


def has_rotary(decoder: nn.Module) -> bool:
    """Return True if a decoder has rotary positions of a known type."""
    return next(_frequency_getters(decoder), None) is not None


def find_rotation(model: PreTrainedModel) -> ModelRotation:
    """Return the rotary positions of a model's layers.

    The first call runs the model to measure the positions. Later calls return the stored result.
    """
    if model not in _rotations:
        _rotations[model] = _probe_rotation(model)
    return _rotations[model]


def _probe_rotation(model: PreTrainedModel) -> ModelRotation:
    decoder = decoder_of(model)
    config = model.config.get_text_config(decoder=True)
    count = config.num_hidden_layers
    positions = getattr(config, "max_position_embeddings", None) or _FAR + 1
    away = min(_FAR, positions - 1)
    first, last = (read_single_token(model, position) for position in (0, away))
    (at_zero, queries_at_zero), (far, queries_far) = ((x.keys, x.queries) for x in (first, last))
    has_position_ids = takes_positions(entry_of(model))
    getters = list(_frequency_getters(decoder))
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    choices = [
        lambda: torch.zeros(0),
        *getters,
    ]  # the first is for layers without positions: no pair is rotated
    rotaries: dict[tuple[int, int, PairLayout], Rotary] = {}

    def rotary(layer: int) -> Rotary | None:
        if layer not in at_zero or not has_position_ids:
            return None
        before, after = at_zero[layer].double(), far[layer].double()
        # The rotation of a zero vector is not visible.
        if before.shape != after.shape or before.ndim != 4 or not before.any():
            return None
        queries = queries_at_zero.get(layer, before).double(), queries_far.get(layer, after).double()
        kind = torch.finfo(at_zero[layer].dtype)
        errors: dict[tuple[int, int, PairLayout], float] = {}
        for (number, get_frequencies), sign in itertools.product(enumerate(choices), (1, -1)):
            angle = sign * away * get_frequencies().double().cpu()
            if 2 * len(angle) > before.shape[-1]:
                continue
            for layout in (PairLayout(len(angle)), PairLayout(len(angle), is_interleaved=True)):
                rotation = Rotation(angle.cos(), angle.sin(), layout)
                error = max(
                    _rotation_error(rotation(before), after, layout, kind),
                    _rotation_error(_rescale(rotation(queries[0]), queries[1]), queries[1], layout, kind),
                )
                if error <= 1:
                    errors[number, sign, layout] = error
        if not errors:
            return None
        number, sign, layout = best = min(errors, key=errors.__getitem__)
        return rotaries.setdefault(best, Rotary(layout, choices[number], dtype, sign))

    rope_types = {kind for module in decoder.modules() for kind in _rope_types(module)}
    changing = next(iter(rope_types & {"dynamic", "longrope"}), None)
    sizes = {layer: (keys.shape[1], keys.shape[-1]) for layer, keys in far.items()}
    return ModelRotation(tuple(rotary(layer) for layer in range(count)), sizes, len(getters), changing)


def _frequency_getters(decoder: nn.Module) -> Iterator[Callable[[], Tensor]]:
    """Yield a function for each rotary embedding in a decoder; the function returns the frequencies."""
    for module in decoder.modules():
        for name, _ in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and not name.endswith("original_inv_freq"):
                yield lambda module=module, name=name: getattr(module, name)


def _rope_types(module: nn.Module) -> set[str]:
    kind = getattr(module, "rope_type", None)
    kinds = kind.values() if isinstance(kind, dict) else [kind]
    return {kind for kind in kinds if isinstance(kind, str)}


def _rotation_error(expected: Tensor, actual: Tensor, layout: PairLayout, kind: torch.finfo) -> float:
    """Return the largest ratio of `|actual - expected|` to the bound on rounding errors of the dtype `kind`.

    NaN counts as infinity. The bound of a coordinate is relative to the norm of its coordinate pair. In
    trained models, some channels are a hundred times as large as other channels. A single bound relative to
    the largest channels would be so loose that it would accept any rotation of the small channels.
    """
    interleaved_pairs = layout.interleave(expected)
    pairs = interleaved_pairs[..., : 2 * layout.pairs].unflatten(-1, (layout.pairs, 2)).norm(dim=-1)
    lengths = torch.cat(
        [pairs.repeat_interleave(2, -1), interleaved_pairs[..., 2 * layout.pairs :].abs()], dim=-1
    )
    # Angles are float32 in any model. Rounding cosines, products and their sum makes less than 3 eps.
    relative = max(4 * kind.eps, 1e-4)
    # The absolute part is for subnormal numbers.
    bound = relative * layout.deinterleave(lengths) + 4 * kind.smallest_normal * kind.eps
    return float(((actual - expected).abs() / bound).nan_to_num(nan=math.inf).max())


def _rescale(x: Tensor, y: Tensor) -> Tensor:
    """Scale each head of `x` so that it is as close as possible to the same head of `y`.

    Some models multiply queries by a factor that depends on the position.
    """
    return x * (x * y).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True).clamp(min=1e-30)


def find_rotaries(model: PreTrainedModel, policies: Sequence[ContextPolicy | None]) -> list[Rotary | None]:
    """Return a `Rotary` for each layer whose policy changes token positions, and None for other layers.

    Raises ValueError on a model whose rotary positions are not supported.
    """
    needs_rotary = [
        policy is not None and (policy.moves_positions or policy.reads_rotary) for policy in policies
    ]
    if not any(needs_rotary):
        return [None] * len(policies)
    rotation, name = find_rotation(model), type(model).__name__
    if rotation.dynamic_type is not None:
        raise ValueError(
            f"{name} has rope_type={rotation.dynamic_type!r}, whose angles change with the length of the "
            "text; use the policy 'full'"
        )
    for layer, (moves, rotary) in enumerate(zip(needs_rotary, rotation.by_layer, strict=True)):
        if moves and rotary is None:
            if not rotation.num_types:
                raise ValueError(f"{name} has no rotary positions of a known type; use the policy 'full'")
            raise ValueError(
                f"{name} rotates keys or queries of layer {layer} in an unknown way; use the policy 'full'"
            )
    return [rotary if moves else None for moves, rotary in zip(needs_rotary, rotation.by_layer, strict=True)]

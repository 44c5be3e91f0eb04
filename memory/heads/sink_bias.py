"""ZeroTuning: make heads attend more or less to the attention sink, and so less or more to all else.

Han et al. 2025 (arXiv 2505.11739): the weight of token 0 is multiplied by gamma and the row renormalised,
which is to add log(gamma) to the logit of token 0. Nothing is trained; gammas are chosen by a task's
validation score.

The logit is added by eight more columns of queries and keys, of which one is used: a query holds its head's
log(gamma), token 0 holds a one and all other keys zero. So no mask of queries by keys is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from scrubjay.memory.context.attention import Attention
from scrubjay.memory.heads.wrap import attention_modules, wrapped_attention

_COLUMNS = 8  # fast kernels want widths of multiples of eight


@contextmanager
def sink_bias(model: PreTrainedModel, gammas: Mapping[int, float | Sequence[float]]) -> Iterator[None]:
    """Multiply attention to token 0 inside the block.

    A gamma per layer, for all its heads or for each of them.

    Token 0 is a row's first that is not padding. Above 1 the sink draws more. Raises ValueError for gammas
    that are not positive or not one per head, and for layers that do not exist or whose window slides away
    from token 0. A `PolicyCache` replaces the model's attention, and refuses to be built or read into inside
    the block.
    """
    modules = attention_modules(model)
    wrappers = {}
    for layer, gamma in gammas.items():
        each = list(gamma) if isinstance(gamma, Sequence) else [gamma]
        if not all(g > 0 and math.isfinite(g) for g in each):
            raise ValueError(f"gammas of layer {layer}: {each} must be positive and finite")
        if layer in modules and getattr(modules[layer], "sliding_window", None) is not None:
            raise ValueError(
                f"layer {layer} slides over its last tokens and loses token 0; choose full layers"
            )
        wrappers[layer] = _Bias(layer, [math.log(g) for g in each])
    with wrapped_attention(model, wrappers):
        yield


class _Bias:
    """The wrapper of one layer."""

    def __init__(self, layer: int, biases: list[float]) -> None:
        self.layer, self.biases = layer, biases

    def __call__(
        self,
        attention: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        scaling: float,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        heads, width = query.shape[1], value.shape[-1]
        if len(self.biases) not in (1, heads):
            raise ValueError(
                f"layer {self.layer} has {heads} heads; give one gamma, or {heads}, not {len(self.biases)}"
            )
        bias = torch.tensor(self.biases, dtype=query.dtype, device=query.device) / scaling
        at_zero = torch.zeros(*key.shape[:3], 1, dtype=key.dtype, device=key.device)
        at_zero.scatter_(2, _first(mask, key)[:, None, None, None].expand(-1, key.shape[1], 1, 1), 1)
        query = torch.cat([query, bias.view(1, -1, 1, 1).expand(*query.shape[:2], query.shape[2], 1)], dim=-1)
        wide = [functional.pad(t, (0, _COLUMNS - 1)) for t in (query, torch.cat([key, at_zero], dim=-1))]
        out, weights = attention(
            module, *wide, functional.pad(value, (0, _COLUMNS)), mask, scaling=scaling, **options
        )
        return out[..., :width], weights


def _first(mask: Tensor | None, key: Tensor) -> Tensor:
    """Return for each row the first key that its last query sees."""
    if mask is None:
        return torch.zeros(key.shape[0], dtype=torch.int64, device=key.device)
    visible = mask[:, 0, -1]
    if visible.dtype != torch.bool:
        visible = visible > torch.finfo(visible.dtype).min / 2
    return visible.int().argmax(dim=-1).expand(key.shape[0])

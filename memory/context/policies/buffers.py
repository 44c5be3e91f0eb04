"""Buffers of keys and values: tokens are appended in place, and every head evicts its own tokens.

A buffer has spare capacity, so that new tokens are written without a copy of the earlier ones. Eviction keeps
the best tokens of each key head and frees the memory of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.select import best

BLOCK = 256
"""Number of tokens by which the capacity grows."""


def compute_capacity(columns: int, most: int | None = None) -> int:
    """Return the capacity for `columns` tokens: the next multiple of `BLOCK`, limited by `most`."""
    capacity = -(-columns // BLOCK) * BLOCK
    return capacity if most is None else max(min(capacity, most), columns)


def append(
    buffer: Float[Tensor, "batch heads capacity *width"] | None,
    count: int,
    new: Float[Tensor, "batch heads length *width"],
    most: int | None = None,
) -> Float[Tensor, "batch heads more *width"]:
    """Write the `new` tokens after the first `count` tokens of a buffer, and return the buffer.

    The buffer is changed in place if the new tokens fit. If they do not fit, the result is a larger buffer
    that ends with zeros. With gradients, the result is always a new buffer: autograd needs the old one.
    """
    total = count + new.shape[2]
    if buffer is not None and total <= buffer.shape[2] and not _must_not_change(buffer, new):
        buffer[:, :, count:total] = new
        return buffer
    spare = new.new_zeros(*new.shape[:2], compute_capacity(total, most) - total, *new.shape[3:])
    before = [] if buffer is None else [buffer[:, :, :count]]
    return torch.cat([*before, new, spare], dim=2)


def shrink(
    buffer: Float[Tensor, "batch heads capacity width"], count: int
) -> Float[Tensor, "batch heads less width"]:
    """Return the buffer with only the capacity that its first `count` tokens need."""
    columns = compute_capacity(count)
    return buffer if columns == buffer.shape[2] else buffer[:, :, :columns].clone()


def find_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a tensor, or in dicts, lists and tuples at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from find_tensors(inner)


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the memory that these tensors occupy; memory that tensors share counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def compact(tensor: Tensor) -> Tensor:
    """Return a copy if `tensor` is a part of a larger tensor, which it would keep in memory."""
    is_part = tensor.untyped_storage().nbytes() > tensor.nbytes
    return tensor.clone(memory_format=torch.contiguous_format) if is_part else tensor


def make_writable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state that can be written in place.

    The result is a copy if the tensors of `state` were created in inference mode.
    """
    if not any(map(_is_frozen, state.values())):
        return state
    return {name: tensor.clone() for name, tensor in state.items()}


def _is_frozen(tensor: Tensor) -> bool:
    # Tensors created in inference mode cannot be written in place outside of it.
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


def _must_not_change(buffer: Tensor, new: Tensor) -> bool:
    return _is_frozen(buffer) or buffer.requires_grad or (torch.is_grad_enabled() and new.requires_grad)


def rate_tokens(
    attention: Float[Tensor, "batch key_heads columns"],
    count: Int[Tensor, " batch"],
    num_sinks: int,
    recent: int,
    pool: Callable[..., Tensor],
    kernel: int,
) -> Float[Tensor, "batch key_heads columns"]:
    """Return the worth of each token, its attention pooled along the text; infinity for safe tokens.

    The first `num_sinks` and the last `recent` tokens are safe. The worth of padding is minus infinity.

    Args:
        attention: Attention that each token received. Padding comes before the tokens of a row.
        count: Number of tokens of each row.
        num_sinks: Number of first tokens that are safe.
        recent: Number of last tokens that are safe.
        pool: Pooling function of torch, such as `max_pool1d`.
        kernel: Odd width of the pooling.
    """
    columns = attention.shape[2]
    slot = (torch.arange(columns, device=attention.device) - columns + count[:, None])[:, None]
    is_token = slot >= 0
    safe = is_token & ((slot < num_sinks) | (slot >= (count - recent)[:, None, None]))
    # Sinks are masked before pooling, which would spread their weight to their neighbours.
    worth = pool(attention.masked_fill(safe | ~is_token, 0), kernel, stride=1, padding=kernel // 2)
    return worth.masked_fill(~is_token, float("-inf")).masked_fill(safe, float("inf"))


def keep_best(
    worth: Float[Tensor, "batch key_heads columns"], counts: Int[Tensor, " batch"], most: int
) -> Int[Tensor, "batch key_heads most"]:
    """Return the indices of the tokens with the highest `worth`, in the order of the text.

    Each head of batch row i keeps `counts[i]` tokens. If this is fewer than `most`, the result starts with
    zeros as fillers. Among equal scores, which are common after pooling, the earlier token wins.
    """
    columns = best(worth, most)
    columns = columns.masked_fill(torch.arange(most, device=columns.device) >= counts[:, None, None], -1)
    return columns.sort(dim=-1).values.clamp(min=0)


def drop_worst(
    worth: Float[Tensor, "batch key_heads columns"], most: int
) -> Int[Tensor, "batch key_heads most"]:
    """Return the indices of the tokens with the highest `worth`, in the order of the text.

    Each head of each batch row keeps `most` tokens. `keep_best` returns the same indices if its
    argument `counts` is `most` for every row. This function is faster if few tokens are evicted.
    """
    columns = worth.shape[-1]
    # Among equal scores the later column is evicted.
    worst = columns - 1 - best(-worth.flip(-1), columns - most)
    stays = torch.ones_like(worth, dtype=torch.bool).scatter_(-1, worst, False)
    return stays.nonzero()[:, -1].view(*worth.shape[:-1], most)


def gather_columns(
    table: Float[Tensor, "batch key_heads columns width"], columns: Int[Tensor, "batch key_heads selected"]
) -> Float[Tensor, "batch key_heads selected width"]:
    """Return the vectors of `table` at the token indices `columns`, which may differ between heads."""
    batch, groups, num_columns, width = table.shape
    first = num_columns * torch.arange(batch * groups, device=table.device).view(batch, groups, 1)
    # Indexing rows of one long table is ten times as fast as `gather`.
    rows = table.reshape(-1, width).index_select(0, (columns + first).flatten())
    return rows.view(batch, groups, -1, width)


def mark_best(
    table: Float[Tensor, "*batch columns"], counts: Int[Tensor, "*batch"]
) -> Bool[Tensor, "*batch columns"]:
    """Return a mask of the `counts` highest scores of each row; among equal scores earlier ones win."""
    order = best(table, int(counts.max()))
    is_best = torch.arange(order.shape[-1], device=order.device) < counts[..., None]
    return torch.zeros_like(table, dtype=torch.bool).scatter(-1, order, is_best)


def move_to_end(
    table: Float[Tensor, "batch heads columns width"], valid: Bool[Tensor, "batch columns"]
) -> Float[Tensor, "batch heads columns width"]:
    """Return a table whose valid columns stand at the end, in their order."""
    order = valid.byte().argsort(dim=1, stable=True)[:, None].expand(-1, table.shape[1], -1)
    return gather_columns(table, order)

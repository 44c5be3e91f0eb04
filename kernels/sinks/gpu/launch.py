"""Forward and backward pass of sink attention by Triton kernels, and configurations that tests compile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scrubjay.kernels.launch import Launch, ensure_dense_rows, name_strides, pad_size
from scrubjay.kernels.sinks.gpu.attend import attend_kernel
from scrubjay.kernels.sinks.gpu.gradients import key_gradient_kernel, query_gradient_kernel
from scrubjay.kernels.sinks.gpu.tiles import FAR


def forward(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sink_logit: Tensor | None,
    query_step: Tensor,
    key_step: Tensor,
    episode_start: Tensor,
    window: int,
    num_sinks: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the output `[B, T, H, V]` and the log-sum-exp of the scores, `[B, T, H]` float32.

    Args: those of `kernels.sink_attention`.
    """
    query, keys, values = map(ensure_dense_rows, (query, keys, values))
    sink_logit = None if sink_logit is None else sink_logit.contiguous()
    out = query.new_empty(*query.shape[:3], values.shape[-1])
    log_sum = query.new_empty(query.shape[:3], dtype=torch.float32)
    tensors = {"query": query, "keys": keys, "values": values, "sink_logit": sink_logit}
    tensors |= {"query_step": query_step, "key_step": key_step, "episode_start": episode_start}
    tensors |= {"out": out, "log_sum": log_sum}
    build_launch(attend_kernel, tensors, window, num_sinks, scale).run()
    return out, log_sum


def backward(
    grads: tuple[Tensor, Tensor | None],
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sink_logit: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    query_step: Tensor,
    key_step: Tensor,
    episode_start: Tensor,
    window: int,
    num_sinks: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, keys, values and sink_logit; the last is empty without a sink_logit.

    Args: those of `kernels.sink_attention`, the outputs of `forward`, and the gradients of these outputs. The
    gradient of the log-sum-exp may be None.
    """
    grad, log_sum_grad = grads
    log_sum_grad = None if log_sum_grad is None else log_sum_grad.float().contiguous()
    grad, query, keys, values = map(ensure_dense_rows, (grad, query, keys, values))
    out, log_sum = out.contiguous(), log_sum.contiguous()
    query_grad, keys_grad, values_grad = (tensor.new_empty(tensor.shape) for tensor in (query, keys, values))
    delta = torch.empty_like(log_sum)
    tensors = {"query": query, "keys": keys, "values": values, "grad": grad}
    tensors |= {"query_step": query_step, "key_step": key_step, "episode_start": episode_start}
    tensors |= {"out": out, "log_sum": log_sum, "log_sum_grad": log_sum_grad, "delta": delta}
    tensors |= {"query_grad": query_grad, "keys_grad": keys_grad, "values_grad": values_grad}
    for kernel in (query_gradient_kernel, key_gradient_kernel):
        build_launch(kernel, tensors, window, num_sinks, scale).run()
    if sink_logit is None:
        return query_grad, keys_grad, values_grad, query.new_empty(0)
    sink_grad = -(torch.exp(sink_logit.float() - log_sum) * delta).sum(dim=(0, 1))
    return query_grad, keys_grad, values_grad, sink_grad.to(sink_logit.dtype)


def build_launch(
    kernel: Any, tensors: Mapping[str, Tensor | None], window: int, num_sinks: int, scale: float
) -> Launch:
    """Return the launch of a kernel, with `tensors`, sizes and constants matched to its parameters by name.

    Tensors are contiguous, except queries, keys, values, steps and the gradient of the output.
    """
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    query, values = present["query"], present["values"]
    batch, queries, heads, width = query.shape
    slots, groups, value_width = values.shape[1:]
    rows = queries * (heads // groups)
    constants, num_warps = _choose_blocks(kernel, rows, width, value_width, query.dtype)
    block = "BLOCK_KEYS" if kernel is key_gradient_kernel else "BLOCK_ROWS"
    tiles = -(-(slots if kernel is key_gradient_kernel else rows) // constants[block])
    by_slot = ("keys", "values", "key_step")
    strides = name_strides("bng", {name: present[name] for name in by_slot})
    strides |= name_strides("bth", {name: x for name, x in present.items() if name not in by_slot})
    # A larger window or sink count reaches every step anyway; the limit keeps int32 arithmetic exact.
    far = FAR.value - 1
    sizes = {"queries": queries, "slots": slots, "groups": groups, "scale": scale}
    sizes |= {"window": min(window, far), "num_sinks": min(num_sinks, far)}
    constants |= {"SHARED": heads // groups, "WIDTH": width, "VALUE_WIDTH": value_width}
    return Launch.match(kernel, (tiles * groups * batch,), tensors, strides | sizes, constants, num_warps)


def _choose_blocks(
    kernel: Any, rows: int, width: int, value_width: int, dtype: torch.dtype
) -> tuple[dict[str, int], int]:
    """Return block sizes and the number of warps.

    No registers spill at widths up to 128, or up to 64 in float32.
    """
    block_width = pad_size(width)
    block_value = pad_size(value_width)
    widest = max(block_width, block_value)
    if dtype == torch.float32:
        outer, inner = (32, 32) if widest <= 64 else (32, 16) if widest <= 128 else (16, 16)
        num_warps = 8
    elif widest <= 128:
        outer, inner, num_warps = 64, 32, 4 if kernel is attend_kernel or widest <= 64 else 8
    else:
        outer, inner, num_warps = 32, 32, 8
    block_rows, block_keys = (inner, outer) if kernel is key_gradient_kernel else (outer, inner)
    # A decode step has only the heads of one group as rows, so a tile may have more keys.
    fewest = pad_size(rows)
    if fewest <= 16 and kernel is attend_kernel and dtype != torch.float32:
        block_keys, num_warps = 64, 4
    blocks = {
        "BLOCK_ROWS": min(block_rows, fewest),
        "BLOCK_KEYS": block_keys,
        "BLOCK_WIDTH": block_width,
        "BLOCK_VALUE": block_value,
    }
    return blocks, num_warps


def configurations() -> dict[str, Launch]:
    """Return example launches by name. They hold meta tensors, so they compile without a GPU."""
    launches = {}
    for dtype, width in ((torch.float16, 64), (torch.bfloat16, 128), (torch.float32, 64)):
        name = f"{str(dtype).removeprefix('torch.')}, D={width}"
        launches[f"decode: {name}"] = _meta_launches(dtype, width, queries=1)[0]
        for launch in _meta_launches(dtype, width, queries=1024):
            launches[f"{launch.name}: {name}"] = launch
    return launches


def _meta_launches(dtype: torch.dtype, width: int, queries: int) -> list[Launch]:
    def tensor(*shape, dtype=dtype):
        return torch.empty(*shape, dtype=dtype, device="meta")

    batch, heads, groups, slots = 8, 8, 2, queries + 132
    query, values = tensor(batch, queries, heads, width), tensor(batch, slots, groups, width)
    log_sum = tensor(batch, queries, heads, dtype=torch.float32)
    steps = tensor(batch, queries, dtype=torch.int64)
    tensors = dict.fromkeys(("query", "grad", "out", "query_grad"), query)
    tensors |= dict.fromkeys(("keys", "values", "keys_grad", "values_grad"), values)
    tensors |= dict.fromkeys(("log_sum", "log_sum_grad", "delta"), log_sum)
    tensors |= {
        "query_step": steps,
        "key_step": tensor(batch, slots, dtype=torch.int64),
        "episode_start": steps,
    }
    tensors["sink_logit"] = tensor(heads, dtype=torch.float32)
    kernels = (attend_kernel, query_gradient_kernel, key_gradient_kernel)
    return [build_launch(kernel, tensors, 128, 4, width**-0.5) for kernel in kernels]

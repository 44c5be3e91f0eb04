"""Example launches of the kernels of sink attention, which the tests compile."""

from __future__ import annotations

import torch

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.sinks.gpu.attend import attend_launch
from scrubjay.kernels.sinks.gpu.gradients import key_gradient_launch, query_gradient_launch


def configurations() -> dict[str, Launch]:
    """Return example launches by name. They hold meta tensors, so they compile without a GPU."""
    launches = {}
    for dtype, width in ((torch.float16, 64), (torch.bfloat16, 128), (torch.float32, 64)):
        name = f"{str(dtype).removeprefix('torch.')}, D={width}"
        launches[f"decode: {name}"] = _meta_launches(dtype, width, queries=1)["forward"]
        for kernel, launch in _meta_launches(dtype, width, queries=1024).items():
            launches[f"{kernel}: {name}"] = launch
    return launches


def _meta_launches(dtype: torch.dtype, width: int, queries: int) -> dict[str, Launch]:
    def tensor(*shape, dtype=dtype):
        return torch.empty(*shape, dtype=dtype, device="meta")

    batch, heads, groups, slots = 8, 8, 2, queries + 132
    query = grad = out = query_grad = tensor(batch, queries, heads, width)
    keys = values = keys_grad = values_grad = tensor(batch, slots, groups, width)
    log_sum = delta = tensor(batch, queries, heads, dtype=torch.float32)
    query_step = episode_start = tensor(batch, queries, dtype=torch.int64)
    steps = (query_step, tensor(batch, slots, dtype=torch.int64), episode_start)
    sizes = (128, 4, width**-0.5)
    sink_logit = tensor(heads, dtype=torch.float32)
    inputs = (grad, query, keys, values, *steps)
    return {
        "forward": attend_launch(query, keys, values, sink_logit, *steps, out, log_sum, *sizes),
        "query gradient": query_gradient_launch(*inputs, out, log_sum, log_sum, delta, query_grad, *sizes),
        "key gradient": key_gradient_launch(*inputs, log_sum, delta, keys_grad, values_grad, *sizes),
    }

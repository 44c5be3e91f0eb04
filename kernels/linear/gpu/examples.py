"""Main configurations of the kernels of linear memory, which the tests compile."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.linear.gpu.autograd import allocate_grads, allocate_trace
from scrubjay.kernels.linear.gpu.forward import forward_launches
from scrubjay.kernels.linear.gpu.gradients import backward_launches
from scrubjay.kernels.linear.gpu.layout import LinearKernelInputs


def configurations() -> dict[str, Launch]:
    """Return example launches by name. They hold meta tensors, so they compile without a GPU."""
    launches = {}
    for dtype, width, per_channel, rule in (
        (torch.bfloat16, 64, False, "delta"),
        (torch.bfloat16, 64, True, "delta"),
        (torch.float32, 32, False, "delta"),
        (torch.float32, 64, False, "hebbian"),
    ):
        decay = "channel" if per_channel else "head"
        name = f"{str(dtype).removeprefix('torch.')}, {rule}, one decay per {decay}, D={width}, C=32"
        for launch in _example(dtype == torch.float32, width, per_channel, rule == "delta"):
            kernel = launch.kernel.__name__.removeprefix("_").removesuffix("_kernel").replace("_", " ")
            kernel = "keys' " * launch.constants.get("FROM_KEYS", False) + kernel
            launches[f"{kernel}: {name}"] = launch
    return launches


def _example(exact: bool, width: int, channel: bool, delta: bool) -> list[Launch]:
    count, rows, length, levels = 16, 32, 32, 5

    def meta(*sizes: int) -> Tensor:
        return torch.empty(count, rows, *sizes, device="meta")

    factors = width if channel else 1
    tokens, decays = meta(length, width), meta(length, factors)
    inputs = LinearKernelInputs(
        tokens, tokens, tokens, meta(length), meta(levels, length, factors), decays, decays, delta, exact
    )
    trace, state = allocate_trace(inputs), torch.empty(rows, width, width, device="meta")
    grads = allocate_grads(inputs, trace, tokens, state)
    return [*forward_launches(inputs, trace, state, tokens), *backward_launches(inputs, trace, grads)]

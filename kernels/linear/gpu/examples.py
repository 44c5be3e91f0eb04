"""The main configurations of linear memory's kernels, to be compiled in checks."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.linear.gpu.forward import forward_launches
from scrubjay.kernels.linear.gpu.gradients import backward_launches
from scrubjay.kernels.linear.gpu.layout import Inputs
from scrubjay.kernels.linear.gpu.walk import new_grads, new_kept


def configurations() -> dict[str, Launch]:
    """Return the launches of the main configurations on meta tensors, to compile without a GPU."""
    launches = {}
    for dtype, width, channel, rule in (
        (torch.bfloat16, 64, False, "delta"),
        (torch.bfloat16, 64, True, "delta"),
        (torch.float32, 32, False, "delta"),
        (torch.float32, 64, False, "hebbian"),
    ):
        decay = "channel" if channel else "head"
        name = f"{str(dtype).removeprefix('torch.')}, {rule}, a decay a {decay}, D={width}, C=32"
        for launch in _example(dtype == torch.float32, width, channel, rule == "delta"):
            kernel = launch.kernel.__name__.removeprefix("_").removesuffix("_kernel").replace("_", " ")
            kernel = "known " * launch.constants.get("KNOWN", False) + kernel
            launches[f"{kernel}: {name}"] = launch
    return launches


def _example(exact: bool, width: int, channel: bool, delta: bool) -> list[Launch]:
    count, rows, length, levels = 16, 32, 32, 5

    def meta(*sizes: int) -> Tensor:
        return torch.empty(count, rows, *sizes, device="meta")

    factors = width if channel else 1
    tokens, decays = meta(length, width), meta(length, factors)
    inputs = Inputs(
        tokens, tokens, tokens, meta(length), meta(levels, length, factors), decays, decays, delta, exact
    )
    trace, state = new_kept(inputs), torch.empty(rows, width, width, device="meta")
    grads = new_grads(inputs, trace, tokens, state)
    return [*forward_launches(inputs, trace, state, tokens), *backward_launches(inputs, trace, grads)]

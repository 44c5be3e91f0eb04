"""Main configurations of the kernels of neural memory, which the tests compile."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.neural.gpu.gradients.read import read_gradient_launches
from scrubjay.kernels.neural.gpu.gradients.rule import rule_gradient_launch
from scrubjay.kernels.neural.gpu.gradients.write import write_gradient_launch
from scrubjay.kernels.neural.gpu.layout import KernelBorders, Layout, NeuralKernelInputs, allocate_trace
from scrubjay.kernels.neural.gpu.read import read_launch
from scrubjay.kernels.neural.gpu.write import write_launch
from scrubjay.kernels.neural.network import NetworkShape, NeuralState


def configurations() -> dict[str, Launch]:
    """Return example launches by name. They hold meta tensors, so they compile without a GPU."""
    launches = {}
    for dtype, width, hidden, length in (
        (torch.bfloat16, 64, None, 32),
        (torch.float32, 32, None, 32),
        (torch.float16, 32, 64, 16),
    ):
        depth = "a matrix" if hidden is None else f"hidden {hidden}"
        name = f"{str(dtype).removeprefix('torch.')}, D={width}, {depth}, C={length}"
        for kernel, launch in _example(dtype, width, hidden, length).items():
            launches[f"{kernel}: {name}"] = launch
    return launches


def _example(dtype: torch.dtype, width: int, hidden: int | None, length: int) -> dict[str, Launch]:
    batch, count, heads = 8, 16, 4
    rows = batch * heads

    def meta(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*sizes, dtype=dtype, device="meta")

    layers = ((width, width),) if hidden is None else ((width, hidden), (hidden, width))
    layout = Layout(NetworkShape(layers, residual=False, norm=False), length)
    tokens = [meta(batch, count * length, heads, width, dtype=dtype) for _ in range(3)]
    rule, state = meta(rows, count, layout.sizes()["RULE_SIZE"]), meta(batch, heads, layout.shape.size)
    flags = meta(batch, count, dtype=torch.int32)
    weights = tuple(meta(heads, a, b) for a, b in layers)
    query, key, value = tokens
    inputs = NeuralKernelInputs(
        query, key, value, rule, weights, NeuralState(state, state, state), KernelBorders(flags, flags)
    )
    trace, grads = allocate_trace(inputs, layout), meta(rows, count, layout.sizes()["GRADS_SIZE"])
    states_grad = trace.states
    reads = read_gradient_launches(inputs, layout, trace, tokens[0], tokens[0], rule, grads, states_grad)
    return {
        "write": write_launch(inputs, layout, state, trace),
        "read": read_launch(inputs, layout, tokens[0], trace),
        **dict(zip(("read gradient", "lower read gradient"), reads, strict=False)),
        "write gradient": write_gradient_launch(inputs, layout, trace, rule, grads, states_grad, state),
        "rule gradient": rule_gradient_launch(inputs, layout, trace, rule, states_grad),
    }

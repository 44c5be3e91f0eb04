"""Launch of a kernel of neural memory, with arguments matched to the kernel's parameters by name."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.neural.gpu.layout import Layout, NeuralKernelInputs


def build_launch(
    kernel, programs: int, inputs: NeuralKernelInputs, layout: Layout, arguments: dict[str, Tensor]
) -> Launch:
    """Return the launch of a kernel, with inputs and constants matched to its parameters by name."""
    inner, width = layout.shape.layers[-1]
    exact = all(x.dtype == torch.float32 for x in (inputs.query, inputs.key, inputs.value))
    constants: dict[str, object] = {
        "C": layout.length,
        "D": width,
        "I": inner,
        "DEPTH": len(layout.shape.layers),
        "RESIDUAL": layout.shape.residual,
        "PRECISION": "tf32x3" if exact else "tf32",
        "BLOCK_C": _block(layout.length),
        "BLOCK_D": _block(width),
        "BLOCK_I": 16,
        **layout.sizes(),
        **{name.upper(): offset for name, offset in layout.rule_slots.items()},
        **{name.upper(): offset for name, (offset, _) in (layout.trace_slots | layout.grad_slots).items()},
    }
    lower, upper = inputs.weights if len(inputs.weights) == 2 else (None, *inputs.weights)
    available: dict[str, object] = {
        "rule_ptr": inputs.rule,
        "lower_ptr": lower,
        "upper_ptr": upper,
        "flags_ptr": inputs.borders.flags,
        "source_ptr": inputs.borders.source,
        "N": inputs.rule.shape[1],
        "H": inputs.query.shape[2],
        **arguments,
    }
    for name in ("query", "key", "value"):
        tensor = getattr(inputs, name)
        available[f"{name}_ptr"] = tensor
        available |= {f"{name}_{dim}": tensor.stride(place) for place, dim in enumerate("bth")}
    return Launch(
        kernel,
        (programs,),
        {name: available[name] for name in kernel.arg_names if name in available},
        {name: constants[name] for name in kernel.arg_names if name in constants},
        num_warps=_warps(layout),
        num_stages=1,
    )


def _block(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _warps(layout: Layout) -> int:
    """Return the number of warps: one for every 16 tokens of a chunk, but at least four."""
    return max(4, _block(layout.length) // 16)

"""The launch of a kernel, which takes of all inputs and constants those that it names."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.neural.gpu.layout import Inputs, Layout


def launch_of(kernel, programs: int, inputs: Inputs, layout: Layout, arguments: dict[str, Tensor]) -> Launch:
    """Return the launch of a kernel, which takes of all inputs and constants those that it names."""
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
        "MIXED": layout.mixed,
        **layout.sizes(),
        **{name.upper(): offset for name, (offset, _) in (layout.kept | layout.owed).items()},
    }
    lower, upper = inputs.weights if len(inputs.weights) == 2 else (None, *inputs.weights)
    known: dict[str, object] = {
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
        known[f"{name}_ptr"] = tensor
        known |= {f"{name}_{dim}": tensor.stride(place) for place, dim in enumerate("bth")}
    return Launch(
        kernel,
        (programs,),
        {name: known[name] for name in kernel.arg_names if name in known},
        {name: constants[name] for name in kernel.arg_names if name in constants},
        num_warps=_warps(layout),
        num_stages=1,
    )


def _block(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _warps(layout: Layout) -> int:
    """Give every warp 16 of a chunk's tokens, the rows of most products, and use no fewer than four."""
    return max(4, _block(layout.length) // 16)

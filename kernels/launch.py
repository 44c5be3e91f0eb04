"""Launches of Triton kernels as objects. A `Launch` runs its kernel, or compiles it without a GPU.

The host code of a kernel builds a `Launch` from the kernel's tensors. Meta tensors suffice for compiling. So
tests compile the same code that runs, including assumptions on the divisibility of pointers and strides.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
    torch.uint8: "*u8",
}


class Build(NamedTuple):
    """Resource usage of a compiled kernel: registers and spilled bytes per thread, shared bytes per block."""

    registers: int
    spilled_bytes: int
    shared: int
    ptx: str


@dataclass(frozen=True)
class Launch:
    """Triton kernel with its grid, run-time arguments by name (tensors, numbers or None) and constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2

    @classmethod
    def match(
        cls,
        kernel: Any,
        grid: tuple[int, ...],
        tensors: Mapping[str, Tensor | None],
        numbers: dict[str, Any],
        constants: dict[str, Any],
        num_warps: int = 4,
        num_stages: int = 2,
    ) -> Launch:
        """Return a launch with arguments matched to the kernel's parameters by name.

        Entries without a parameter of their name are ignored.

        Args:
            kernel: Triton kernel.
            grid: Number of programs along each axis.
            tensors: Tensors; an entry `x` is the parameter `x_ptr`.
            numbers: Sizes and strides.
            constants: Constants, known when the kernel is compiled.
            num_warps: Warps per program.
            num_stages: Stages of the software pipeline.
        """
        arguments = {f"{name}_ptr": tensor for name, tensor in tensors.items()} | numbers
        arguments, constants = (
            {name: values[name] for name in kernel.arg_names if name in values}
            for values in (arguments, constants)
        )
        return cls(kernel, grid, arguments, constants, num_warps, num_stages)

    @property
    def name(self) -> str:
        """Name of the kernel in words."""
        return self.kernel.__name__.removeprefix("_").removesuffix("_kernel").replace("_", " ")

    def run(self) -> None:
        """Launch the kernel on the device of its arguments; do nothing if the grid is empty."""
        if 0 in self.grid:
            return
        device = next(value.device for value in self.arguments.values() if isinstance(value, Tensor))
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if device.type != "cuda":
            self.kernel[self.grid](**self.arguments, **self.constants, **options)
            return
        with torch.cuda.device(device):
            self.kernel[self.grid](**self.arguments, **self.constants, **options)

    def build(self, capability: int) -> Build:
        """Compile for compute capability `capability`, such as 80, 90 or 100, without a GPU.

        Fails in a process where TRITON_INTERPRET is set.
        """
        import triton
        import triton.knobs
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        signature, constants, attributes = {}, dict(self.constants), {}
        for index, name in enumerate(self.kernel.arg_names):
            if name in self.constants:
                signature[name] = "constexpr"
                continue
            value = self.arguments[name]
            # As in a real launch: None and 1 become constants, and multiples of 16 are marked as divisible.
            if value is None or (isinstance(value, int) and value == 1):
                signature[name], constants[name] = "constexpr", value
                continue
            signature[name] = _signature(value)
            if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=attributes)
        binary = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True},
        )
        with tempfile.TemporaryDirectory() as directory:
            cubin_path = Path(directory) / "kernel.cubin"
            cubin_path.write_bytes(binary.asm["cubin"])
            command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin_path)]
            usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        usage_by_field = dict(field.split(":", 1) for field in usage.split() if ":" in field)
        # Spilled registers are counted in STACK; LOCAL counts only memory that a kernel declares.
        spilled_bytes = int(usage_by_field["STACK"]) + int(usage_by_field["LOCAL"])
        return Build(int(usage_by_field["REG"]), spilled_bytes, binary.metadata.shared, binary.asm["ptx"])


def ensure_dense_rows(tensor: Tensor) -> Tensor:
    """Return `tensor` with a contiguous last dimension, as the kernels require; copy it only if necessary."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def pad_size(size: int) -> int:
    """Return the size of a tile that holds `size` elements: a power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def name_strides(letters: str, tensors: Mapping[str, Tensor | None]) -> dict[str, int]:
    """Return the strides of tensors by name: `x_b` is the stride of tensor `x` along the axis of letter b.

    The strides of a tensor that is None are 0.
    """
    return {
        f"{name}_{letter}": stride
        for name, tensor in tensors.items()
        for letter, stride in zip(
            letters, [0] * len(letters) if tensor is None else tensor.stride(), strict=False
        )
    }


def _signature(value: Any) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"

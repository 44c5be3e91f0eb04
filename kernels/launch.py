"""One launch of a Triton kernel as a value: run it, or compile it for a GPU that is not there.

A kernel's host code returns a `Launch` from the tensors it would be given; meta tensors do for compiling. So
what is compiled in a check is what runs, divisibility of pointers and strides included.
"""

from __future__ import annotations

import subprocess
import tempfile
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
    """What a kernel became on a GPU: registers and spilled bytes a thread, shared bytes a block."""

    registers: int
    spilled: int
    shared: int
    ptx: str


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid, its run-time arguments by name (tensors, numbers or None) and its constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2

    def run(self) -> None:
        """Launch on the device of the arguments; an empty grid does nothing."""
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
        """Compile to machine code for compute capability `capability` (80, 90, 100) without a GPU.

        Cannot work in a process where TRITON_INTERPRET is set.
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
            # The specialisations of a real launch: None and 1 become constants, multiples of 16 are marked.
            if value is None or (isinstance(value, int) and value == 1):
                signature[name], constants[name] = "constexpr", value
                continue
            signature[name] = _signature(value)
            if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=attributes)
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True},
        )
        with tempfile.TemporaryDirectory() as folder:
            binary = Path(folder) / "kernel.cubin"
            binary.write_bytes(compiled.asm["cubin"])
            command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
            usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        used = dict(field.split(":", 1) for field in usage.split() if ":" in field)
        # Registers that do not fit go to the stack; LOCAL counts only what a kernel declares.
        spilled = int(used["STACK"]) + int(used["LOCAL"])
        return Build(int(used["REG"]), spilled, compiled.metadata.shared, compiled.asm["ptx"])


def with_dense_rows(tensor: Tensor) -> Tensor:
    """Return `tensor` with its last dimension contiguous, as kernels read it, copied only if it is not."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _signature(value: Any) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"

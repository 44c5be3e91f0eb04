"""Which implementation of an op runs: the definition, vectorised torch, or Triton.

Every op takes `implementation`, and `force` sets it for a block of code:

- `"reference"`: the op's definition in plain torch, slow and obvious; everything else is tested against it.
- `"torch"`: vectorised torch on any device, differentiable any number of times, in forward mode too.
- `"triton"`: the GPU kernels, differentiable once in reverse mode. With TRITON_INTERPRET=1 in the environment
  before the first import of triton they run on CPU tensors as well, very slowly.
- `"auto"`: triton on a GPU where the kernels support the sizes, otherwise torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Implementation = Literal["auto", "reference", "torch", "triton"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_CHOICES = ("auto", "reference", "torch", "triton")
_forced: str = "auto"


@contextlib.contextmanager
def force(implementation: Implementation) -> Iterator[None]:
    """Make every op called inside use `implementation`, unless its own argument names another.

    Holds for the whole process, not for one thread. Raises ValueError on an unknown name.
    """
    global _forced
    _check_choice(implementation, _CHOICES)
    before, _forced = _forced, implementation
    try:
        yield
    finally:
        _forced = before


def resolve(
    implementation: str, *tensors: Tensor | None, paths: tuple[str, ...] = (), unsupported: str | None = None
) -> str:
    """Return the implementation to run: "reference", "torch", "triton" or one of `paths`.

    `paths` are an op's own variants of "torch". `unsupported` says why Triton cannot do these sizes: then
    "auto" means torch, and asking for "triton" raises ValueError with it. Raises ValueError on an unknown
    name and RuntimeError where Triton cannot run.
    """
    _check_choice(implementation, _CHOICES + paths)
    if implementation == "auto":
        implementation = _forced
    on_gpu = all(tensor.is_cuda for tensor in tensors if tensor is not None)
    if implementation == "auto":
        usable = on_gpu and unsupported is None and _has_triton()
        return "triton" if usable and not any_dual(*tensors) else "torch"
    if implementation == "triton":
        if unsupported is not None:
            raise ValueError(f"implementation='triton': {unsupported}; use 'torch' or 'auto'")
        if not _has_triton():
            raise RuntimeError(
                "implementation='triton': triton is not installed; pip install 'scrubjay[gpu]', or use "
                "'torch' or 'auto'"
            )
        if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError(
                "implementation='triton' needs CUDA tensors, or TRITON_INTERPRET=1 in the environment before "
                "triton is imported; use 'torch' or 'auto'"
            )
        if any_dual(*tensors):
            raise NotImplementedError(
                "implementation='triton' has no forward-mode derivative; use 'torch' under jvp and dual "
                "numbers"
            )
    return implementation


def without_autocast(op: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return `op` with torch.autocast switched off inside, which would take scores in half precision."""

    @functools.wraps(op)
    def run(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        if not any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
            return op(*args, **options)
        kinds = {value.device.type for value in (*args, *options.values()) if isinstance(value, Tensor)}
        kind = next(iter(kinds & {"cpu", "cuda"}), None)
        if kind is None or not torch.is_autocast_enabled(kind):
            return op(*args, **options)
        with torch.autocast(kind, enabled=False):
            return op(*args, **options)

    return run


def any_dual(*tensors: Tensor | None) -> bool:
    """Return whether any tensor carries a forward-mode tangent."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def without_own_gradient(*tensors: Tensor | None) -> bool:
    """Return whether a graph is recorded or a derivative taken that only plain operations have."""
    return is_traced() or torch._C._are_functorch_transforms_active() or any_dual(*tensors)


def is_traced() -> bool:
    """Return whether compile, export or make_fx records a graph, so that no value may be looked at."""
    # Asked first, as compile cannot see through the other question.
    if torch.compiler.is_compiling():
        return True
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def is_compiled() -> bool:
    """Return whether torch.compile records: then an op stays one node.

    An exported graph holds plain torch only.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def widest_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the widest dtype of `tensors`, at least float32: what a state is kept in."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_floats(**tensors: Tensor | None) -> None:
    """Raise TypeError on a tensor of whole numbers, by its name."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected a floating-point one")


def unsupported_dtype(*tensors: Tensor) -> str | None:
    """Return why the Triton kernels cannot take the dtype of one of `tensors`, None if they can."""
    for tensor in tensors:
        if tensor.dtype not in TRITON_DTYPES:
            return f"the kernels take float16, bfloat16 and float32, not {tensor.dtype}"
    return None


def without_data(tensors: tuple[Tensor, *tuple[Tensor | None, ...]], wanted: list[bool]) -> list[Tensor]:
    """Return what a backward op does, for tracing: a gradient of each tensor, empty where none is wanted."""
    return [
        tensor.new_empty(tensor.shape) if want and tensor is not None else tensors[0].new_empty(0)
        for tensor, want in zip(tensors, wanted, strict=True)
    ]


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _check_choice(implementation: str, choices: tuple[str, ...]) -> None:
    if implementation not in choices:
        raise ValueError(f"implementation={implementation!r}; choose from {', '.join(choices)}")

"""Selection of the implementation of an op: the reference, vectorized torch, or Triton.

Every op takes the argument `implementation`, and `force` sets its default for a block of code:

- `"reference"`: the definition in plain torch, slow and simple; all other implementations are tested against
  it.
- `"torch"`: vectorized torch on any device; supports higher derivatives and forward-mode differentiation.
- `"triton"`: the GPU kernels, differentiable once in reverse mode. If TRITON_INTERPRET=1 is set before the
  first import of triton, the kernels also run on CPU tensors, very slowly.
- `"auto"`: "triton" on a GPU if the kernels support the sizes, otherwise "torch".
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Implementation = Literal["auto", "reference", "torch", "triton"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_CHOICES = ("auto", "reference", "torch", "triton")
_default_implementation: str = "auto"

_MODULES = {
    "retrieval.dense": "scrubjay.kernels.retrieval.dense",
    "retrieval.reference": "scrubjay.kernels.retrieval.reference",
    "retrieval.step": "scrubjay.kernels.retrieval.step",
    "retrieval.torch": "scrubjay.kernels.retrieval.vectorized",
}
"""Registry of implementations: the module of each name."""
_LOADED: dict[str, ModuleType] = {}


@contextlib.contextmanager
def force(implementation: Implementation) -> Iterator[None]:
    """Make `implementation` the default of every op called inside the block.

    An explicit `implementation` argument takes precedence. The default is per process, not per thread.

    Raises:
        ValueError: On an unknown name.
    """
    global _default_implementation
    _check_choice(implementation, _CHOICES)
    previous, _default_implementation = _default_implementation, implementation
    try:
        yield
    finally:
        _default_implementation = previous


def resolve(
    implementation: str,
    *tensors: Tensor | None,
    paths: tuple[str, ...] = (),
    unsupported_reason: str | None = None,
) -> str:
    """Return the implementation to run: "reference", "torch", "triton" or one of `paths`.

    `paths` are the variants of "torch" that this op supports in addition. `unsupported_reason` is the reason
    why the Triton kernels do not support the inputs, or None if they do. With a reason, "auto" selects
    "torch", and "triton" raises ValueError.

    Raises ValueError on an unknown name. For "triton", raises RuntimeError if triton is not installed or the
    tensors are not on a GPU, and NotImplementedError if a tensor has a forward-mode tangent.
    """
    _check_choice(implementation, _CHOICES + paths)
    if implementation == "auto":
        implementation = _default_implementation
    on_gpu = all(tensor.is_cuda for tensor in tensors if tensor is not None)
    if implementation == "auto":
        usable = on_gpu and unsupported_reason is None and _has_triton()
        return "triton" if usable and not any_dual(*tensors) else "torch"
    if implementation == "triton":
        if unsupported_reason is not None:
            raise ValueError(f"implementation='triton': {unsupported_reason}; use 'torch' or 'auto'")
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
                "implementation='triton' has no forward-mode derivative; use 'torch' for jvp and dual numbers"
            )
    return implementation


def load_implementation(name: str) -> ModuleType:
    """Return the module of an implementation, imported at its first use: "retrieval.reference"."""
    # torch.compile traces a lookup in `_LOADED`, but no import.
    if torch.compiler.is_compiling() or name not in _LOADED:
        _import_implementation(name)
    return _LOADED[name]


def _import_implementation(name: str) -> None:
    _LOADED[name] = importlib.import_module(_MODULES[name])


# The mark of `torch.compiler.assume_constant_result`, which imports the compiler for a second.
_import_implementation._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def prefers_torch() -> bool:
    """Return True if "auto" means "torch" for tensors on the CPU, False if `force` set another default."""
    return _default_implementation in ("auto", "torch")


def without_autocast(op: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return a function that runs `op` with torch.autocast disabled.

    Under autocast, torch would compute matrix products in half precision.
    """

    @functools.wraps(op)
    def run(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return op(*args, **options)
        device_types = {
            value.device.type for value in (*args, *options.values()) if isinstance(value, Tensor)
        }
        device_type = next(iter(device_types & {"cpu", "cuda"}), None)
        if device_type is None or not torch.is_autocast_enabled(device_type):
            return op(*args, **options)
        with torch.autocast(device_type, enabled=False):
            return op(*args, **options)

    return run


def any_dual(*tensors: Tensor | None) -> bool:
    """Return True if any tensor carries a forward-mode tangent."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def needs_plain_autograd(*tensors: Tensor | None) -> bool:
    """Return True if an op must consist of plain torch operations.

    Tracing, torch.func and forward-mode autograd require this.
    """
    return is_traced() or torch._C._are_functorch_transforms_active() or any_dual(*tensors)


def is_traced() -> bool:
    """Return True if compile, export or make_fx is tracing. Tensor values must not be read then."""
    # First, because torch.compile cannot trace the second check.
    if torch.compiler.is_compiling():
        return True
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def is_compiled() -> bool:
    """Return True if torch.compile is tracing. An op then becomes one node of the compiled graph.

    The result is False under torch.export, because an exported graph holds plain torch operations only.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def widest_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the widest dtype of `tensors`, at least float32. Ops use this dtype for their states."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_floats(**tensors: Tensor | None) -> None:
    """Raise TypeError that names the first tensor without a floating-point dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected a floating-point dtype")


def check_shapes(expected: dict[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    """Raise ValueError that names the first tensor whose shape differs from the expected one.

    `expected` holds a tensor and its shape by name. Tensors that are None pass.
    """
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")


def check_start(start: Tensor | None, batch: int, time: int) -> None:
    """Raise ValueError if the mask of episode starts is not `[batch, time]` or not of dtype bool."""
    check_shapes({"start": (start, (batch, time))})
    if start is not None and start.dtype != torch.bool:
        raise ValueError(f"start has dtype {start.dtype}; expected torch.bool; pass start.bool()")


def unsupported_dtype(*tensors: Tensor) -> str | None:
    """Return the reason why the Triton kernels do not support a dtype of `tensors`; None if they do."""
    for tensor in tensors:
        if tensor.dtype not in TRITON_DTYPES:
            return f"the kernels support float16, bfloat16 and float32, not {tensor.dtype}"
    return None


def unsupported_transform() -> str | None:
    """Return the reason why no Triton kernel can run under tracing or torch.func; None outside of both."""
    if is_traced() or torch._C._are_functorch_transforms_active():
        return "no kernel under torch.compile or torch.func"
    return None


def run_checked(
    fast: Callable[[Tensor | None], tuple[Tensor, ...]],
    rerun: Callable[..., tuple[Tensor, ...]],
    reference: Callable[..., tuple[Tensor, ...]],
    start: Tensor | None,
    *inputs: Tensor,
) -> tuple[Tensor, ...]:
    """Return the results of `fast`; the reference computes batch rows with non-finite results.

    0 * NaN is NaN, so a NaN after an episode start may come from before the start. And a product of decays
    may overflow where no result does. Under tracing and torch.func no check is possible.

    Args:
        fast: Function of the mask of episode starts, which is None if no episode starts.
        rerun: Fast function of the mask and the inputs, for the rows without such results.
        reference: Reference function of the mask and the inputs.
        start: Mask of the steps that begin an episode, `[batch, time]`; None if no step does.
        inputs: Inputs, batch first.
    """
    can_check = not (is_traced() or needs_plain_autograd(*inputs))
    if can_check and inputs[0].is_cpu and start is not None and not start.any():
        start = None
    results = fast(start)
    if not can_check:
        return results
    first, *others = (x.detach().sum() for x in results)
    if bool(torch.isfinite(sum(others, first))):
        return results
    finite = torch.stack([torch.isfinite(x.detach()).flatten(1).all(1) for x in results]).all(0)
    if finite.all():  # only the sum overflowed
        return results
    if not finite.any():
        return reference(start, *inputs)
    parts = [
        run(None if start is None else start[rows], *(x[rows] for x in inputs))
        for run, rows in ((rerun, finite), (reference, ~finite))
    ]
    order = torch.cat([finite.nonzero()[:, 0], (~finite).nonzero()[:, 0]]).argsort()
    return tuple(torch.cat(pair)[order] for pair in zip(*parts, strict=True))


def empty_gradients(
    tensors: tuple[Tensor, *tuple[Tensor | None, ...]], needs_gradient: list[bool]
) -> list[Tensor]:
    """Return an uninitialized gradient for each tensor. Tracing needs only the shapes of the gradients.

    The gradient of a tensor has the shape of the tensor, or is empty if the tensor needs no gradient.
    """
    return [
        tensor.new_empty(tensor.shape) if needs and tensor is not None else tensors[0].new_empty(0)
        for tensor, needs in zip(tensors, needs_gradient, strict=True)
    ]


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _check_choice(implementation: str, choices: tuple[str, ...]) -> None:
    if implementation not in choices:
        raise ValueError(f"implementation={implementation!r}; choose from {', '.join(choices)}")

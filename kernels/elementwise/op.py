"""Scan: an elementwise linear recurrence over sequences that may contain several episodes.

The state h follows h_t = a_t h_{t-1} + b_t, with the decay a and the value b of each step.

Linear recurrent units, minimal GRUs, fast and forgetful memories and stable Hadamard memories share this
recurrence (Orvieto et al. 2023, arXiv 2303.06349; Feng et al. 2024, arXiv 2410.01201; Morad et al. 2023,
arXiv 2310.04128; Le et al. 2024, arXiv 2410.10132). An associative scan computes it in parallel (Blelloch
1990). At an episode start h_t = b_t. The code selects b_t there instead of setting a_t to 0, because 0 * NaN
is NaN.

Complex numbers are pairs of real and imaginary parts, so that any file format can store the states.

Letters: B batch, T time, D any dims of a step.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels.derivatives import supports_custom_backward
from scrubjay.kernels.dispatch import (
    Implementation,
    is_traced,
    needs_plain_autograd,
    resolve,
    unsupported_dtype,
    widest_dtype,
    without_autocast,
)
from scrubjay.kernels.elementwise import blocks, reference, sequential, steady


@without_autocast
def scan(
    decay: Float[Tensor, "B T *D"] | Float[Tensor, "*D"],
    value: Float[Tensor, "B T *D"],
    state: Float[Tensor, "B *D"],
    *,
    start: Bool[Tensor, "B T"] | None = None,
    pairs: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "B T *D"], Float[Tensor, "B *D"]]:
    """Return the states after every step, and the last state.

    Steps before an episode start do not affect later steps, even if they contain NaN or inf. The dtype of
    computation and results is the widest dtype of the inputs, at least float32.

    "torch" runs step by step, or by blocks of steps if a step has few numbers. On a CPU it has a custom
    backward pass that supports higher derivatives. "torch" also checks its results, and recomputes batch rows
    with non-finite values by "reference". Under torch.compile and torch.func no check is possible, so all
    inputs must be finite. "triton" loops over time with all channels in parallel, and is differentiable once.

    Args:
        decay: Factor of the previous state, per step or the same for all steps.
        value: Summand of each step.
        state: Initial state.
        start: Mask of the steps that begin an episode; none by default.
        pairs: Treat the last dimension as real and imaginary parts of complex numbers.
        implementation: An implementation of `scrubjay.kernels.dispatch`.

    Raises ValueError if shapes do not match.
    """
    _check(decay, value, state, start, pairs)
    reason = unsupported_dtype(decay, value, state)
    if reason is None and (is_traced() or torch._C._are_functorch_transforms_active()):
        reason = "no kernel under torch.compile or torch.func"
    path = resolve(implementation, decay, value, state, unsupported_reason=reason)
    dtype = widest_dtype(decay, value, state)
    decay, value, state = (x.to(dtype) for x in (decay, value, state))
    if path == "triton" and 0 not in value.shape:
        from scrubjay.kernels.elementwise import gpu

        return gpu.run(decay.expand_as(value), value, state, start, pairs)
    shape = value.shape
    if pairs:
        decay, value, state = (torch.view_as_complex(x.contiguous()) for x in (decay, value, state))
    if path == "reference" or shape[1] <= 1 or 0 in shape:
        states, after = reference.run(start, decay.expand_as(value), value, state)
    else:
        decay = decay.reshape(*shape[:2], -1) if decay.ndim == value.ndim else decay.flatten()
        flat = (decay, value.reshape(*shape[:2], -1), state.reshape(shape[0], -1))
        states = _run_fast(start, *flat)
        after = states[:, -1]
    if pairs:
        states, after = torch.view_as_real(states), torch.view_as_real(after)
    return states.reshape(shape), after.reshape(shape[0], *shape[2:])


def _run_fast(start: Tensor | None, decay: Tensor, value: Tensor, state: Tensor) -> Tensor:
    """Run the fast path. The reference recomputes batch rows with non-finite values."""
    can_check = not (is_traced() or needs_plain_autograd(decay, value, state))
    if can_check and value.is_cpu and start is not None and not start.any():
        start = None
    has_custom_backward = supports_custom_backward(decay, value, state)
    if has_custom_backward and decay.ndim == 1 and state.numel() >= steady.NARROW:
        states = steady.scan(start, decay, value, state)
        decay = decay.expand_as(value)
    else:
        decay = decay.expand_as(value)
        states = (
            sequential.scan(start, decay, value, state)
            if has_custom_backward
            else blocks.run(start, decay, value, state)
        )
    # 0 * NaN is NaN, so a NaN after a start may come from before it; and a product of decays may overflow
    # where no state does.
    if not can_check or bool(torch.isfinite(states.detach().sum())):
        return states
    non_finite = ~torch.isfinite(states.detach()).flatten(1).all(1)
    if not non_finite.any():  # only the sum overflowed
        return states
    inputs = [x[non_finite] for x in (decay, value, state)]
    reference_states, _ = reference.run(None if start is None else start[non_finite], *inputs)
    finite = ~non_finite
    if not finite.any():
        return reference_states
    inputs = [x[finite] for x in (decay, value, state)]
    rest = blocks.run(None if start is None else start[finite], *inputs)
    return torch.cat([rest, reference_states])[
        torch.cat([finite.nonzero()[:, 0], non_finite.nonzero()[:, 0]]).argsort()
    ]


def _check(decay: Tensor, value: Tensor, state: Tensor, start: Tensor | None, pairs: bool) -> None:
    if value.ndim < 2:
        raise ValueError(
            f"value has shape {tuple(value.shape)}; expected at least 2 dims, [batch, time, ...]"
        )
    if pairs and (value.ndim < 3 or value.shape[-1] != 2):
        raise ValueError(f"value has shape {tuple(value.shape)}; expected a last dim of 2 with pairs=True")
    batch, time, *rest = value.shape
    expected = {
        "decay": (decay, tuple(rest) if decay.ndim == len(rest) else (batch, time, *rest)),
        "state": (state, (batch, *rest)),
        "start": (start, (batch, time)),
    }
    for name, (tensor, size) in expected.items():
        if tensor is not None and tuple(tensor.shape) != size:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {size}")
    if start is not None and start.dtype != torch.bool:
        raise ValueError(f"start has dtype {start.dtype}; expected torch.bool; pass start.bool()")

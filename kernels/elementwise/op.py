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
    check_shapes,
    check_start,
    resolve,
    run_checked,
    unsupported_dtype,
    unsupported_transform,
    widest_dtype,
    without_autocast,
)
from scrubjay.kernels.elementwise.vectorized import NARROW, run_blocks, run_in_place, run_reference


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

    Raises:
        ValueError: If shapes do not match.
    """
    _check(decay, value, state, start, pairs)
    reason = unsupported_dtype(decay, value, state) or unsupported_transform()
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
        states, after = run_reference(start, decay.expand_as(value), value, state)
    else:
        decay = decay.reshape(*shape[:2], -1) if decay.ndim == value.ndim else decay.flatten()
        flat = (decay, value.reshape(*shape[:2], -1), state.reshape(shape[0], -1))
        states = _run_fast(start, *flat)
        after = states[:, -1]
    if pairs:
        states, after = torch.view_as_real(states), torch.view_as_real(after)
    return states.reshape(shape), after.reshape(shape[0], *shape[2:])


def _run_fast(start: Tensor | None, decay: Tensor, value: Tensor, state: Tensor) -> Tensor:
    """Run a fast path. Batch rows that are recomputed run by blocks."""
    has_custom_backward = supports_custom_backward(decay, value, state)
    whole_decay = decay.expand_as(value)
    if not has_custom_backward or state.numel() < NARROW:
        decay = whole_decay
    run = run_in_place if has_custom_backward else run_blocks
    (states,) = run_checked(
        lambda start: (run(start, decay, value, state),),
        lambda *inputs: (run_blocks(*inputs),),
        lambda *inputs: run_reference(*inputs)[:1],
        start,
        whole_decay,
        value,
        state,
    )
    return states


def _check(decay: Tensor, value: Tensor, state: Tensor, start: Tensor | None, pairs: bool) -> None:
    if value.ndim < 2:
        raise ValueError(
            f"value has shape {tuple(value.shape)}; expected at least 2 dims, [batch, time, ...]"
        )
    if pairs and (value.ndim < 3 or value.shape[-1] != 2):
        raise ValueError(f"value has shape {tuple(value.shape)}; expected a last dim of 2 with pairs=True")
    batch, time, *rest = value.shape
    check_shapes(
        {
            "decay": (decay, tuple(rest) if decay.ndim == len(rest) else (batch, time, *rest)),
            "state": (state, (batch, *rest)),
        }
    )
    check_start(start, batch, time)

"""Scan: an elementwise linear recurrence, h_t = a_t h_{t-1} + b_t, with episodes inside the sequence.

What linear recurrent units, minimal GRUs, fast and forgetful memories and stable Hadamard memories have in
common (Orvieto et al. 2023, arXiv 2303.06349; Feng et al. 2024, arXiv 2410.01201; Morad et al. 2023, arXiv
2310.04128; Le et al. 2024, arXiv 2410.10132), and what an associative scan computes in parallel (Blelloch
1990). Where an episode begins h_t = b_t, by choice and not by a factor of 0, which forgets no NaN.

Complex numbers come as pairs of real and imaginary parts, so that states can be kept in any file.

Letters: B batch, T time, D whatever a step has.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels.derivatives import has_own_gradient
from scrubjay.kernels.dispatch import (
    Implementation,
    is_traced,
    resolve,
    unsupported_dtype,
    widest_dtype,
    without_autocast,
    without_own_gradient,
)
from scrubjay.kernels.elementwise import blocks, reference, steady, walk


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
    """Return the states after every step, and the last one.

    Nothing before a `start` has an effect on what is behind it, NaN and inf included. Computed in at least
    float32, the widest dtype of what is given, which is that of what is returned.

    "torch" goes step by step, or by blocks of time where steps are small, with a gradient by hand on a CPU
    that can be differentiated again. It looks at what it computed: rows that hold numbers which are not
    finite are done by the definition. Under torch.compile and torch.func nothing can be looked at, and what
    is given must be finite. "triton" walks through time, all channels at once, and is differentiable once.

    Args:
        decay: By what the state before is multiplied, at every step or at all alike.
        value: What is added.
        state: What is known before.
        start: Steps before which all is forgotten; none by default.
        pairs: Whether the last dimension holds real and imaginary parts of complex numbers.
        implementation: One of `scrubjay.kernels.dispatch`.

    Raises ValueError on sizes that disagree.
    """
    _check(decay, value, state, start, pairs)
    reason = unsupported_dtype(decay, value, state)
    if reason is None and (is_traced() or torch._C._are_functorch_transforms_active()):
        reason = "no kernel under torch.compile or torch.func"
    path = resolve(implementation, decay, value, state, unsupported=reason)
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
        states = _by_blocks(start, *flat)
        after = states[:, -1]
    if pairs:
        states, after = torch.view_as_real(states), torch.view_as_real(after)
    return states.reshape(shape), after.reshape(shape[0], *shape[2:])


def _by_blocks(start: Tensor | None, decay: Tensor, value: Tensor, state: Tensor) -> Tensor:
    """Run the fast path on all rows but those in which something is not finite."""
    looks = not (is_traced() or without_own_gradient(decay, value, state))
    if looks and value.is_cpu and start is not None and not start.any():
        start = None
    own = has_own_gradient(decay, value, state)
    if own and decay.ndim == 1 and state.numel() >= steady.NARROW:
        states = steady.scan(start, decay, value, state)
        decay = decay.expand_as(value)
    else:
        decay = decay.expand_as(value)
        states = walk.scan(start, decay, value, state) if own else blocks.run(start, decay, value, state)
    # A product with zero forgets no NaN, so one that is behind a start may have come from before it; and a
    # product of decays may leave all numbers where none of the states does.
    if not looks or bool(torch.isfinite(states.detach().sum())):
        return states
    sick = ~torch.isfinite(states.detach()).flatten(1).all(1)
    if not sick.any():  # only their sum is beyond all numbers
        return states
    given = [x[sick] for x in (decay, value, state)]
    found, _ = reference.run(None if start is None else start[sick], *given)
    well = ~sick
    if not well.any():
        return found
    given = [x[well] for x in (decay, value, state)]
    rest = blocks.run(None if start is None else start[well], *given)
    return torch.cat([rest, found])[torch.cat([well.nonzero()[:, 0], sick.nonzero()[:, 0]]).argsort()]


def _check(decay: Tensor, value: Tensor, state: Tensor, start: Tensor | None, pairs: bool) -> None:
    if value.ndim < 2:
        raise ValueError(f"value has shape {tuple(value.shape)}; expected numbers for each step of each row")
    if pairs and (value.ndim < 3 or value.shape[-1] != 2):
        raise ValueError(f"value has shape {tuple(value.shape)}; expected pairs, so 2 at its end")
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
        raise ValueError(f"start has dtype {start.dtype}; expected torch.bool, so pass start.bool()")

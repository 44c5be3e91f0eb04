"""Law 5 on precision: float64 is computed in float64, and under autocast only products are rounded."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from scrubjay.memory.contract.trial import BATCH, DEVIATIONS, ROUNDING, MemoryLawError, Trial, compare

_SHIFT = 1e-9
"""Shift far below float32's resolution and far above float64's."""

_SCALES = (1.0, 2.0**-6)
"""Magnitudes of the inputs under autocast. A wrong epsilon of a norm changes the outputs of small inputs."""
_NEIGHBORS = 4
"""Number of nearby inputs and weights."""


def check_precision(trial: Trial) -> None:
    """Check the precision of outputs, in float64 or under autocast."""
    if trial.dtype == torch.float64:
        _check_float64(trial)
    if trial.autocast and trial.dtype == torch.float32:
        _check_autocast(trial)


def _check_float64(trial: Trial) -> None:
    """Check that nothing is rounded to float32, so tiny shifts of x change the output linearly."""
    x, start, state = trial.draw(), trial.draw_starts(), trial.draw_state()
    shift = _SHIFT * trial.draw()
    with torch.no_grad():
        there, here, back = (trial.memory(inputs, state, start)[0] for inputs in (x + shift, x, x - shift))
    what = f"output, computed in less than float64 (compared with shifts of x by ±{_SHIFT:.0e}),"
    compare(5, what, here, (there + back) / 2, trial.tolerance)


def _check_autocast(trial: Trial) -> None:
    """Check that norms are computed in float32, and that outputs are close to those without autocast.

    Products that round their factors are exact products of slightly different inputs and weights. The outputs
    may therefore change as much as by such inputs and weights, in a few random directions, times the factor
    by which roundings add up. A memory that retrieves is tested in its first step only, since rounding may
    change what it selects.
    """
    record = trial.autocast_record
    if record.norms:
        names = ", ".join(sorted(record.norms))
        raise MemoryLawError(5, f"a norm is computed in bfloat16 ({names}); convert its input to float32")
    steps = 1 if getattr(trial.memory, "retrieves", False) else trial.steps
    exact = copy.deepcopy(trial.memory)
    exact.forward = type(exact).forward.__get__(exact)
    nearby = copy.deepcopy(exact)
    nearby.forward = type(nearby).forward.__get__(nearby)
    for scale in _SCALES:
        x, state = scale * trial.draw(time=steps), trial.memory.initial_state(BATCH)
        with torch.no_grad():
            y, expected = trial.memory(x, state)[0], exact(x, state)[0]
            spread = 0.0
            for _ in range(_NEIGHBORS):
                _blur_weights(trial, exact, nearby)
                change = nearby(_blur(trial, x), state)[0] - expected
                spread = max(spread, float(change.abs().max()))
        # In units of the larger of 1 and the outputs, as `compare` has them.
        spread = spread / max(1.0, float(expected.abs().max()))
        label = f"output for inputs of magnitude {scale:g}, against that without autocast,"
        compare(5, label, y, expected, DEVIATIONS * max(spread, ROUNDING))


def _blur(trial: Trial, value: Tensor) -> Tensor:
    """Return `value` with random relative errors, as large as one rounding to bfloat16 can be."""
    noise = 2 * torch.rand(value.shape, generator=trial.generator, dtype=torch.float64) - 1
    return value * (1 + ROUNDING * noise).to(value)


def _blur_weights(trial: Trial, source: nn.Module, target: nn.Module) -> None:
    """Set the weights of `target` to those of `source` with random errors."""
    for weight, parameter in zip(source.parameters(), target.parameters(), strict=True):
        parameter.copy_(_blur(trial, weight))

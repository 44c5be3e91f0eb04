"""Law 5 on precision: float64 is computed in float64, and under autocast only products are rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.memory.contract.base import State
from scrubjay.memory.contract.trial import (
    BATCH,
    DEVIATIONS,
    ROUNDING,
    Blur,
    MemoryLawError,
    Nearby,
    Trial,
    compare,
)

_SHIFT = 1e-9
"""Shift far below float32's resolution and far above float64's."""

_SCALES = (1.0, 2.0**-6)
"""Magnitudes of the inputs under autocast. A wrong epsilon of a norm changes the outputs of small inputs."""


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
    by which roundings add up. Of a memory that retrieves, small inputs are tested in the first step only.
    """
    record = trial.autocast_record
    if record.norms:
        names = ", ".join(sorted(record.norms))
        raise MemoryLawError(5, f"a norm is computed in bfloat16 ({names}); convert its input to float32")
    for scale in _SCALES:
        # Small inputs have nearly equal scores, so rounding inside the memory decides what it selects.
        single = scale < 1 and getattr(trial.memory, "retrieves", False)
        x, state = scale * trial.draw(time=1 if single else None), trial.memory.initial_state(BATCH)

        def run(trial: Trial, blur: Blur, x: Tensor = x, state: State = state) -> dict[str, Tensor]:
            with torch.no_grad():
                return {"output": trial.memory(blur(x), state)[0]}

        nearby = Nearby(trial, run)
        with torch.no_grad():
            y = trial.memory(x, state)[0]
        label = f"output for inputs of magnitude {scale:g}, against that without autocast,"
        compare(5, label, y, nearby.exact["output"], DEVIATIONS * ROUNDING, bound=nearby.bound("output"))

"""Law 5 over a million steps: outputs stay finite, and memory use does not grow."""

from __future__ import annotations

import gc
import pickle

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.memory.contract.laws import compare_cuts
from scrubjay.memory.contract.trial import MemoryLawError, Trial

_LONG_STEPS = 1_000_000
_INPUT_KINDS = ("random", "constant", "zero", "alternating")


def check_stays_finite(trial: Trial) -> None:
    """Law 5 over a million steps: the output stays finite, and neither tensors nor module grow.

    The four rows of inputs are random, constant, zero, and constant with alternating sign. Law 1 is then
    checked from the final state, with random inputs and again with these four rows.
    """
    memory, piece = trial.memory, 1000
    state = memory.initial_state(len(_INPUT_KINDS))
    inputs = trial.draw(1, piece)
    earlier: tuple[int, int] | None = None
    with torch.no_grad():
        for done in range(piece, _LONG_STEPS + 1, piece):
            y, state = memory(_make_inputs_of_each_kind(inputs, done // piece), state)
            finite = torch.isfinite(y).flatten(1).all(dim=1).tolist()
            if not all(finite):
                kind = _INPUT_KINDS[finite.index(False)]
                raise MemoryLawError(5, f"the output is not finite within {done} steps of {kind} inputs")
            if done in (2 * piece, _LONG_STEPS):
                now = (_live_tensor_bytes(), len(pickle.dumps(memory)))
                if earlier is not None and (now[0] > earlier[0] or now[1] > earlier[1]):
                    raise MemoryLawError(
                        5, f"tensors and module grew from {earlier} bytes to {now} in {done} steps"
                    )
                earlier = now
    # The state after a million steps must obey law 1, too.
    suffix = f" after {_LONG_STEPS} steps"
    compare_cuts(trial, state, suffix, trial.draw(len(_INPUT_KINDS)))
    # Under constant inputs many values are 0 or 1, where rounding must not decide the gradient.
    compare_cuts(
        trial, state, f"{suffix}, with the same inputs", _make_inputs_of_each_kind(inputs[:, : trial.steps])
    )


def _make_inputs_of_each_kind(
    inputs: Float[Tensor, "1 time dim"], shift: int = 0
) -> Float[Tensor, "kinds time dim"]:
    """Return four rows of inputs: random (rolled by `shift` steps), constant, zero and alternating."""
    constant = inputs[:, :1].expand_as(inputs)
    alternating = constant.clone()
    alternating[:, 1::2] *= -1
    return torch.cat([inputs.roll(shift, dims=1), constant, torch.zeros_like(inputs), alternating])


def _live_tensor_bytes() -> int:
    gc.collect()
    storages = {
        o.untyped_storage().data_ptr(): o.untyped_storage().nbytes()
        for o in gc.get_objects()
        if type(o) in (Tensor, nn.Parameter) and o.layout == torch.strided
    }
    return sum(storages.values())

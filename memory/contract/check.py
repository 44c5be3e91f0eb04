"""`check_memory`: tests the nine laws of the contract on any module.

1. Step equals sequence: every division of a sequence into segments gives the same outputs, state and
   gradients, also after a million steps.
2. Start resets: after `start` nothing depends on earlier inputs or states, including NaN and inf.
3. Causal: an input does not change earlier outputs.
4. Rows are independent: the output of a row does not depend on other rows or on the order of rows.
5. Fixed shape: the state never grows, `state_bytes` is exact, outputs stay finite over a million steps, and
   float64 is computed in float64. Under autocast norms are computed in float32, and outputs are those without
   autocast up to the rounding of products.
6. No hidden state: the state is a flat dict of tensors, there is no other state, and no argument is modified.
   A memory that is rebuilt from its config and `state_dict` gives the same outputs.
7. Empty store reads zero: if a memory retrieves stored items, it reads exact zeros until one is stored.
8. Compiles: one step passes `torch.compile(fullgraph=True)` and `torch.export` with a dynamic batch.
9. Learns: finite gradients reach every parameter, in float32 and bfloat16.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.memory.contract.laws import (
    CHECKS,
    check_compiles,
    check_learns,
    compare_cuts,
    first_line,
    list_other_entries,
)
from scrubjay.memory.contract.trial import LAWS, MemoryLawError, Trial

# Pairs of a law and an input dtype: under autocast the layer before a memory may output either dtype.
_UNDER_AUTOCAST = (*((law, torch.float32) for law in (1, 2, 4, 5, 6, 9)), (5, torch.bfloat16))

_LONG_STEPS = 1_000_000
_INPUT_KINDS = ("random", "constant", "zero", "alternating")


def check_memory(
    memory: nn.Module,
    *,
    dim: int | None = None,
    laws: Sequence[int] = tuple(LAWS),
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    steps: int | None = None,
    long: bool = False,
    autocast: bool = False,
    compile_backend: str = "aot_eager",
    seed: int = 0,
) -> list[str]:
    """Test the contract's laws on copies of `memory` and return a description of each exemption.

    Args:
        memory: Module to test.
        dim: Width of the memory; by default `memory.dim`.
        laws: Numbers of the laws to test.
        dtypes: Dtypes of parameters and inputs.
        steps: Length of the test sequences; by default long enough to fill three chunks.
        long: Also test law 5 over a million steps with random, constant, zero and alternating inputs, and
            then law 1 from the final state. This takes a minute or more.
        autocast: Also test laws 1, 2, 4, 5, 6 and 9 under torch.autocast to bfloat16. Shapes and dtypes must
            be the same as without autocast. The bound of errors follows from the rounding of bfloat16, from
            the number of products, and from the change of a result by nearby weights and inputs. Norms must
            be computed in float32.
        compile_backend: Backend of torch.compile for law 8. "inductor" generates code; the default only
            traces.
        seed: Seed of the inputs; the memory's weights are used as they are.

    Raises:
        MemoryLawError: if a law is violated. The message names the law, the step and the size of the error.
        ValueError: if a number in `laws` is unknown.
        TypeError: if `memory` is not a module or its width is unknown.
    """
    unknown = sorted(set(laws) - set(LAWS))
    if unknown:
        raise ValueError(f"unknown laws {unknown}; choose from 1 to {len(LAWS)}")
    if not isinstance(memory, nn.Module):
        raise TypeError(f"memory={memory!r:.200}: expected a module; for a config, pass config.build()")
    width = dim if dim is not None else getattr(memory, "dim", None)
    if not isinstance(width, int):
        raise TypeError("the memory has no integer attribute `dim`; pass check_memory(memory, dim=...)")
    chunk_size = getattr(getattr(memory, "config", None), "chunk_size", 1)
    length = steps if steps is not None else max(48, 3 * chunk_size + 2)
    exempt: list[str] = []

    def fresh(parameters: torch.dtype, inputs: torch.dtype | None = None, autocast: bool = False) -> Trial:
        return Trial(_copy(memory, parameters), width, length, inputs or parameters, seed, autocast)

    for dtype in dtypes:
        trial = fresh(dtype)
        for law, check in CHECKS.items():
            if law not in laws:
                continue
            try:
                with _report_law(law):
                    check(trial)
            except MemoryLawError as error:
                if law != 6 and 6 in laws:  # in-place writes and hidden state break other laws, too
                    with _report_law(6):
                        CHECKS[6](fresh(dtype))
                if (
                    dtype == torch.float32
                    and "is off by" in error.detail
                    and _passes(law, fresh(torch.float64))
                ):
                    message = f"{error.detail}; the law holds in float64, so the cause is rounding error"
                    raise MemoryLawError(law, message) from error
                raise
    float_trial = fresh(torch.float32)
    if 7 in laws and not getattr(memory, "retrieves", False):
        exempt.append("law 7 (empty store reads zero): the memory does not retrieve, `retrieves` is False")
    elif 7 in laws and list_other_entries(memory):
        names = ", ".join(list_other_entries(memory))
        exempt.append(f"law 7 (empty store reads zero): entries not in `stores`: {names}")
    if 8 in laws:
        with _report_law(8):
            check_compiles(float_trial, compile_backend)
    silent = tuple(getattr(memory, "no_gradient", ()))
    if 9 in laws:
        for dtype in (torch.float32, torch.bfloat16):
            with _report_law(9):
                check_learns(fresh(dtype), silent)
    for law, dtype in _UNDER_AUTOCAST if autocast else ():
        if law in laws:
            trial = fresh(torch.float32, dtype, autocast=True)
            with _report_law(law, f" under autocast, with {dtype} inputs"):
                check_learns(trial, silent) if law == 9 else CHECKS[law](trial)
    if 9 in laws and silent:
        exempt.append(f"law 9 (learns): parameters in `no_gradient`: {', '.join(silent)}")
    if 5 in laws and long:
        with _report_law(5):
            check_stays_finite(float_trial)
    return exempt


def _passes(law: int, trial: Trial) -> bool:
    try:
        with _report_law(law):
            CHECKS[law](trial)
    except MemoryLawError:
        return False
    return True


@contextlib.contextmanager
def _report_law(law: int, how: str = "") -> Iterator[None]:
    """Convert exceptions of the memory into a MemoryLawError of this law; append `how` to the message."""
    try:
        yield
    except MemoryLawError as error:
        if not how:
            raise
        raise MemoryLawError(error.law, f"{error.detail}{how}") from error
    except Exception as error:
        raise MemoryLawError(law, f"the memory raised {first_line(error)}{how}") from error


def _copy(memory: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(memory).to(dtype)


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

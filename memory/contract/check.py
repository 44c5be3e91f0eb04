"""`check_memory`: the nine laws of the contract, tested on any module, ours or yours.

1. Step is sequence: any cut of a sequence into segments gives the same outputs, state and gradients,
   after a million steps as after a hundred.
2. Start is birth: after `start` nothing depends on what came before, NaN and inf included.
3. Causal: an input changes nothing earlier than itself.
4. Rows are strangers: permuting, adding or removing rows does just that to the outputs.
5. Fixed shape: the state never grows, `state_bytes` is exact, a million steps stay finite;
   float64 stays that.
6. Plain: the state is a flat dict of tensors, nothing is hidden elsewhere, nothing passed in is changed; what
   its config builds and `state_dict` fills is the same memory.
7. Empty is silent: a memory that retrieves reads exact zeros until something is stored.
8. Compiles: one step passes `torch.compile(fullgraph=True)` and `torch.export` with a dynamic batch.
9. Learns: finite gradients reach every parameter, in float32 and bfloat16.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from scrubjay.memory.contract.laws import (
    CHECKS,
    compiles,
    first_line,
    learns,
    no_stores,
    stays_finite,
)
from scrubjay.memory.contract.trial import LAWS, MemoryLawError, Trial

# Laws and dtypes of inputs: what lies before a memory may give it either.
_UNDER_AUTOCAST = (*((law, torch.float32) for law in (1, 2, 4, 5, 6, 9)), (5, torch.bfloat16))


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
    """Test the contract's laws on copies of `memory` and return what it was exempted from, in words.

    Args:
        memory: Any module that obeys the contract, or should.
        dim: Its width; by default `memory.dim`.
        laws: Their numbers.
        dtypes: Of parameters and inputs.
        steps: Length of the test sequences; by default what fills three chunks.
        long: Add the million steps of law 5 of inputs drawn, constant, zero and alternating, and law 1 behind
            them (a minute or more).
        autocast: Test laws 1, 2, 4, 5, 6 and 9 under torch.autocast to bfloat16, too: shapes and dtypes as
            without it, values to bfloat16's precision.
        compile_backend: Of law 8; "inductor" generates code where the default only traces.
        seed: Of inputs; weights are the memory's own.

    Raises:
        MemoryLawError: naming the law, the step and the size of the first violation.
        ValueError: on an unknown law.
        TypeError: if it is no module, or no width is known.
    """
    unknown = sorted(set(laws) - set(LAWS))
    if unknown:
        raise ValueError(f"unknown laws {unknown}; choose from 1 to {len(LAWS)}")
    if not isinstance(memory, nn.Module):
        raise TypeError(f"memory={memory!r:.200}: expected a module; of a config, what its build() returns")
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
                with _named(law):
                    check(trial)
            except MemoryLawError as error:
                if law != 6 and 6 in laws:  # what writes in place or hides something breaks other laws by it
                    with _named(6):
                        CHECKS[6](fresh(dtype))
                if dtype == torch.float32 and "is off by" in error.what and _holds(law, fresh(torch.float64)):
                    told = f"{error.what}; in float64 it holds, so what grows here is rounding"
                    raise MemoryLawError(law, told) from error
                raise
    float_trial = fresh(torch.float32)
    if 7 in laws and not getattr(memory, "retrieves", False):
        exempt.append("law 7 (empty is silent): the memory retrieves nothing, `retrieves` is False")
    elif 7 in laws and no_stores(memory):
        exempt.append(
            f"law 7 (empty is silent): by its own word no stores are {', '.join(no_stores(memory))}"
        )
    if 8 in laws:
        with _named(8):
            compiles(float_trial, compile_backend)
    silent = tuple(getattr(memory, "no_gradient", ()))
    if 9 in laws:
        for dtype in (torch.float32, torch.bfloat16):
            with _named(9):
                learns(fresh(dtype), silent)
    for law, dtype in _UNDER_AUTOCAST if autocast else ():
        if law in laws:
            trial = fresh(torch.float32, dtype, autocast=True)
            with _named(law, f" under autocast, given {dtype}"):
                learns(trial, silent) if law == 9 else CHECKS[law](trial)
    if 9 in laws and silent:
        exempt.append(f"law 9 (learns): by its own word no gradient reaches {', '.join(silent)}")
    if 5 in laws and long:
        with _named(5):
            stays_finite(float_trial)
    return exempt


def _holds(law: int, trial: Trial) -> bool:
    try:
        with _named(law):
            CHECKS[law](trial)
    except MemoryLawError:
        return False
    return True


@contextlib.contextmanager
def _named(law: int, how: str = "") -> Iterator[None]:
    """Turn whatever the memory raises while this law is tested into a breach of it, and say how it ran."""
    try:
        yield
    except MemoryLawError as error:
        if not how:
            raise
        raise MemoryLawError(error.law, f"{error.what}{how}") from error
    except Exception as error:
        raise MemoryLawError(law, f"the memory raised {first_line(error)}{how}") from error


def _copy(memory: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(memory).to(dtype)

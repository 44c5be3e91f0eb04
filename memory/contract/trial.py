"""Test fixture of the laws: a copy of the memory, reproducible data, and a comparison with clear errors."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scrubjay.memory.contract.base import State, detach_state

LAWS = {
    1: "step equals sequence",
    2: "start resets",
    3: "causal",
    4: "rows are independent",
    5: "fixed shape",
    6: "no hidden state",
    7: "empty store reads zero",
    8: "compiles",
    9: "learns",
}
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
_ROW_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
ROUNDING = torch.finfo(torch.bfloat16).eps / 2
"""Largest relative error of one rounding to bfloat16."""
DEVIATIONS = 4
"""Largest error under autocast, in standard deviations."""
_PRODUCTS = ("addmm", "addmv", "baddbmm", "bmm", "convolution", "dot", "mm", "mv")
_NORMS = ("linalg_vector_norm", "norm", "rsqrt")
_NEIGHBORS = 16
"""Number of nearby memories and inputs."""
BATCH = 3
_AGE = 1_000_000


class MemoryLawError(AssertionError):
    """Violation of a law. `law` is the number of the law, `detail` is the message without the law."""

    def __init__(self, law: int, message: str) -> None:
        super().__init__(f"law {law} ({LAWS[law]}): {message}")
        self.law, self.detail = law, message


class AutocastRecord(TorchDispatchMode):
    """Record of the operations that a memory computes in bfloat16 under autocast.

    A product rounds its two factors and its result to bfloat16. A rounding has a relative error of at most
    u = 2**-8, with a standard deviation of u / sqrt(3). Independent errors add up as their squares do (Higham
    & Mary 2019, SIAM J. Sci. Comput. 41). Two results of a memory with n products then differ with a standard
    deviation of u sqrt(2 * 3 n / 3) = u sqrt(2 n). The bound is four standard deviations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_products = 0
        self.norms: set[str] = set()
        """Names of norms that are computed in bfloat16."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record it."""
        is_half = any(isinstance(value, Tensor) and value.dtype == torch.bfloat16 for value in args)
        name = func.overloadpacket.__name__ if is_half else ""
        self.num_products += name in _PRODUCTS
        if name in _NORMS:
            self.norms.add(name)
        return func(*args, **(kwargs or {}))

    @property
    def tolerance(self) -> float:
        """Largest difference of two results of the memory."""
        return DEVIATIONS * ROUNDING * (2 * max(1, self.num_products)) ** 0.5


Blur = Callable[[Tensor], Tensor]


class Trial:
    """A copy of the memory with its test data; all random data is reproducible.

    Args:
        memory: Copy of the memory.
        dim: Width of the memory.
        steps: Length of the test sequences.
        dtype: Dtype of the inputs.
        seed: Seed of all random data.
        autocast: Run the memory under torch.autocast to bfloat16, and compare to bfloat16's precision: see
            `AutocastRecord`.
    """

    def __init__(
        self, memory: Any, dim: int, steps: int, dtype: torch.dtype, seed: int, autocast: bool = False
    ) -> None:
        self.memory, self.dim, self.steps, self.dtype = memory, dim, steps, dtype
        self.device = next((p.device for p in memory.parameters()), torch.device("cpu"))
        self.generator = torch.Generator().manual_seed(seed)
        self.autocast = autocast
        if autocast:
            memory.forward = self.autocast_context()(memory.forward)

    @property
    def tolerance(self) -> float:
        """Largest error of outputs, states and gradients."""
        return self.autocast_record.tolerance if self.autocast else _TOLERANCE.get(self.dtype, 1e-5)

    @property
    def row_tolerance(self) -> float:
        """Largest error if only other rows or the order of rows change."""
        return self.autocast_record.tolerance if self.autocast else _ROW_TOLERANCE.get(self.dtype, 1e-6)

    @functools.cached_property
    def autocast_record(self) -> AutocastRecord:
        """Record of one step of the memory under autocast."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(BATCH, 1, self.dim, generator=generator).to(self.device, self.dtype)
        with torch.no_grad(), AutocastRecord() as record:
            self.memory(x, self.memory.initial_state(BATCH))
        return record

    def autocast_context(self) -> torch.autocast:
        """Return the autocast context of the memory."""
        # A cached cast of a weight would sum the gradients of all steps in bfloat16.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=False)

    def without_autocast(self) -> Trial:
        """Return this trial with a copy of the memory that runs without autocast."""
        memory = copy.deepcopy(self.memory)
        memory.forward = type(memory).forward.__get__(memory)
        twin = copy.copy(self)
        twin.memory, twin.autocast = memory, False
        return twin

    def draw(self, batch: int = BATCH, time: int | None = None) -> Tensor:
        """Return random inputs [batch, time, dim]; `time` defaults to the length of the test sequences."""
        shape = (batch, self.steps if time is None else time, self.dim)
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.device, self.dtype)

    def draw_starts(self, batch: int = BATCH) -> Tensor:
        """Return random starts [batch, steps], few enough that episodes span several chunks."""
        return (torch.rand(batch, self.steps, generator=self.generator) < 0.06).to(self.device)

    def draw_state(self, batch: int = BATCH) -> State:
        """Return the state after a random sequence: stores are filled, and clocks differ between rows."""
        state = self.memory.initial_state(batch)
        require_flat(state)
        with torch.no_grad():
            _, state = self.memory(self.draw(batch), state, self.draw_starts(batch))
        require_flat(state)
        return detach_state(state)

    def draw_aged_state(self) -> State | None:
        """Return a state whose clocks show more than a million steps; None if the state has no clocks.

        A clock is an integer entry of each row that grows by one at every step.
        """
        before = self.draw_state()
        with torch.no_grad():
            _, state = self.memory(self.draw(), before)
            clocks = {
                name: value + _AGE
                for name, value in state.items()
                if not value.is_floating_point() and torch.equal(value, before[name] + self.steps)
            }
            if not clocks:
                return None
            _, state = self.memory(self.draw(), state | clocks)
        return detach_state(state)

    def run(self, x: Tensor, state: State, start: Tensor | None, cuts: Sequence[int]) -> tuple[Tensor, State]:
        """Process `x` in segments that end at `cuts` and at the last step."""
        outputs, begin = [], 0
        for end in [*cuts, x.shape[1]]:
            y, state = self.memory(x[:, begin:end], state, None if start is None else start[:, begin:end])
            outputs.append(y)
            begin = end
        return torch.cat(outputs, dim=1), state


class Nearby:
    """Results that a memory would give for slightly different weights and inputs, without autocast.

    A product that rounds its factors is an exact product of slightly different factors. Where nearby weights
    and inputs change a result, so may autocast. This is how a gradient that is a small sum of large terms
    differs, and how a memory that retrieves differs in a row in which it selects between two similar items.

    Args:
        trial: Trial under autocast; without autocast nothing differs.
        run: Function that returns named results. Its arguments are a trial without autocast, and a function
            that returns a tensor with random relative errors, each as large as one rounding can be.
    """

    def __init__(self, trial: Trial, run: Callable[[Trial, Blur], dict[str, Tensor]]) -> None:
        self._trial, self._run = trial, run

    @functools.cached_property
    def exact(self) -> dict[str, Tensor]:
        """Results of the memory itself, without autocast."""
        return self._run(
            self._trial.without_autocast(), functools.partial(_blur, size=0.0, generator=torch.Generator())
        )

    @functools.cached_property
    def changes(self) -> dict[str, Tensor]:
        """Largest change of each result, by its first dimension: these are the rows of a batch."""
        trial = self._trial.without_autocast()
        blur = functools.partial(_blur, size=ROUNDING, generator=torch.Generator().manual_seed(0))
        worst = {name: torch.zeros(()) for name in self.exact}
        for _ in range(_NEIGHBORS):
            weights = zip(self._trial.memory.parameters(), trial.memory.parameters(), strict=True)
            for weight, parameter in weights:
                parameter.data.copy_(blur(weight.detach()))
            for name, value in self._run(trial, blur).items():
                gap = (value.double() - self.exact[name].double()).abs()
                # A result that is not finite nearby allows nothing.
                gap = gap.nan_to_num(nan=0.0, posinf=0.0)
                by_row = gap.flatten(1).amax(dim=1) if gap.ndim > 1 else gap
                worst[name] = torch.maximum(worst[name].to(by_row), by_row)
        return worst

    def bound(self, name: str, rows: Any = ...) -> Callable[[], Tensor] | None:
        """Return a function that computes the largest error of a result in these rows; None without
        autocast."""
        return (lambda: DEVIATIONS * self.changes[name][rows]) if self._trial.autocast else None


def _blur(value: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Return `value` in at least float32, with random relative errors of at most `size`."""
    if not value.is_floating_point():
        return value
    noise = 2 * torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value.device) - 1
    result = value.double() * (1 + size * noise)
    return result.to(torch.promote_types(value.dtype, torch.float32))


def require_flat(state: Any) -> None:
    """Raise MemoryLawError unless `state` is a flat dict of tensors."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise MemoryLawError(6, f"the state is a {type(state).__name__}, not a flat dict with string keys")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise MemoryLawError(6, f"state {name!r} is a {type(value).__name__}, not a tensor")


def compare(
    law: int,
    label: str,
    actual: Tensor,
    expected: Tensor,
    tolerance: float,
    offset: int = 0,
    bound: Callable[[], Tensor] | None = None,
) -> None:
    """Raise MemoryLawError unless `actual` has the shape and dtype of `expected`, and nearly its values.

    Args:
        law: Number of the law under test.
        label: Description of the compared value.
        actual: Result of the memory.
        expected: Expected result.
        tolerance: Largest allowed difference, relative to max(1, largest absolute value of `expected`).
        offset: Number of the first step, for the message.
        bound: Function that returns a difference to allow as well, one for all or one for each row. It is
            called if the tolerance is exceeded.
    """
    actual, expected = actual.detach(), expected.detach()
    if actual.shape != expected.shape:
        raise MemoryLawError(
            law, f"{label} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        )
    if actual.dtype != expected.dtype:
        raise MemoryLawError(law, f"{label} has dtype {actual.dtype}, expected {expected.dtype}")
    if actual.numel() == 0:
        return
    actual, expected = actual.double(), expected.double()
    gap = (actual - expected).abs()
    gap = torch.where(torch.isnan(gap) & ~(torch.isnan(actual) & torch.isnan(expected)), float("inf"), gap)
    gap = torch.nan_to_num(gap, nan=0.0, posinf=float("inf"))
    scale = max(1.0, float(torch.nan_to_num(expected, nan=0.0, posinf=0.0, neginf=0.0).abs().max()))
    limit = torch.full_like(gap, tolerance * scale)
    if bound is not None and (gap > limit).any():
        extra = bound().to(limit)
        limit += extra.reshape(-1, *[1] * (gap.ndim - 1)) if gap.ndim else extra
    if (gap > limit).any():
        place = torch.unravel_index((gap - limit).argmax(), gap.shape)
        step = f" at step {int(place[1]) + offset}" if gap.ndim == 3 and "output" in label else ""
        step = step or (f" at step {int(place[1]) + offset}" if label.startswith("gradient of x") else "")
        worst = float(gap[place])
        size = "not finite" if worst == float("inf") else f"off by {worst:.3g}"
        raise MemoryLawError(
            law, f"{label} is {size}{step}, row {int(place[0])} (allowed {float(limit[place]):.1g})"
        )

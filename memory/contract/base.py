"""The contract every memory obeys: a sequence and a state in, a sequence and a state out.

A state is a flat dict of tensors, batch first, of fixed shapes; nothing is hidden elsewhere.
`start[b, t]` marks `x[b, t]` as the first input of a new episode: row b forgets all that came before.
The nine laws that follow from these two sentences are written and tested in `memory/contract/check.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.memory.contract.clock import latest
from scrubjay.memory.contract.recalled import Recalled
from scrubjay.memory.contract.stepper import PlainStepper, Stepper, can_fold

State = dict[str, Tensor]

LATER = {"later": True}
"""Marks a field that configs did not always have: at its default it is not written, and older versions can
read what does not use it."""

_BUILDERS = ("torch.nn.", "scrubjay.")
"""Where layers come from whose weights are known to say what they do."""

_HARMLESS = 1e12
"""A length that may be multiplied by another such and by weights, and is finite in float32 still."""


@dataclass(frozen=True)
class MemoryConfig(ABC):
    """What every memory is built from; a subclass adds its own sizes. Raises ValueError on a bad width."""

    dim: int = 64
    """Width of inputs and outputs; even, at least 8."""

    def __post_init__(self) -> None:
        if self.dim < 8 or self.dim % 2:
            raise ValueError(f"dim={self.dim}: a memory's width must be even and at least 8")

    @abstractmethod
    def build(self) -> Memory:
        """Return a freshly initialised memory of these sizes."""


class Memory(nn.Module, ABC):
    """Maps `[batch, time, dim]` to the same shape, carrying a state of fixed shape.

    A subclass writes `initial_state` and `step`; `segment`, the path for more than one step, defaults to
    a loop over `step` and is overridden by whoever can do a whole segment at once.
    """

    retrieves: bool = False
    """True for memories that look stored items up; these offer `read(x, state)`. An instance may know better
    than its class."""
    stores: tuple[str, ...] | None = None
    """Names of the state's entries that hold stored items, of a memory that retrieves; None for all. What no
    step has written there may be anything."""
    no_gradient: tuple[str, ...] = ()
    """Names of parameters that by design receive no gradient; an instance may name more than its class."""
    _anchor: Tensor

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        # Moves with the parameters; asking it costs less than finding a parameter, once per step.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Return the state at the birth of an episode, batch first, on the parameters' device."""

    @abstractmethod
    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance every row by one input; no branch may depend on a tensor's values."""

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a whole segment, `start` anywhere.

        Who overrides this sees no values so large that a product of some overflows.
        """
        outputs = []
        for t in range(x.shape[1]):
            y, state = self.step(x[:, t], self.reset_state(state, start[:, t]))
            outputs.append(y)
        return torch.stack(outputs, dim=1), state

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        state: State,
        start: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return outputs and the state after the last input.

        Raises ValueError if the width, the shape or dtype of `start`, or an entry of the state is wrong, or x
        is not of the parameters' dtype, unless under autocast, and TypeError if `state` is no state.
        """
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [batch, time, {self.dim}]")
        if not x.is_floating_point():
            raise ValueError(f"x has dtype {x.dtype}; expected floats, so pass x.float()")
        own = self._anchor.dtype
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"x has dtype {x.dtype}, the memory's parameters {own}; pass x.to({own})")
        check_start(start, x)
        check_state(state, x)
        if not torch.compiler.is_compiling():
            check_entries(state, self._shapes, "memory")
        if x.shape[1] == 1:
            if start is not None:
                state = self.reset_state(state, start[:, 0])
            y, state = self.step(x[:, 0], state)
            return y[:, None], state
        if x.shape[1] == 0:
            return x, state
        if start is None:
            start = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        state = self.blank_unwritten(state)
        # The default loop over `step` meets harm as single steps do, and forgets it by selection alone.
        if type(self).segment is Memory.segment or bool(_size(x, state) < _HARMLESS):
            return self.segment(x, state, start)
        return self._harmed_segment(x, state, start)

    @torch.no_grad()
    def recalled(self, x: Float[Tensor, "batch dim"], state: State) -> Recalled | None:
        """Return what `step` would recall for these inputs, without gradients; None if it cannot be told.

        By default it is no step in particular, and written as strongly as the state moves.
        """
        _, after = self.step(x, state)
        return Recalled.of_move(self.blank_unwritten(state), self.blank_unwritten(after))

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros where nothing was ever stored; for memories that have such places."""
        return state

    def reset_state(self, state: State, start: Bool[Tensor, "batch"]) -> State:
        """Return `state` with the rows marked by `start` replaced by newborn ones."""
        if not torch.compiler.is_compiling() and not start.any():
            return state
        return with_born(state, self.initial_state(1), start)

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows without gradients, under the weights of now."""
        return PlainStepper(self, state)

    def steps_as(self, written: type[Memory], state: State) -> bool:
        """Return whether a stepper made for the steps of `written` may take those of this memory."""
        same = type(self).step is written.step and _is_as_built(self) and _misfit(state, self._shapes) is None
        return same and can_fold(self.device, self._anchor.dtype, state)

    def state_bytes(self, batch_size: int = 1) -> int:
        """Return the exact size of the state in bytes."""
        return sum(value.numel() * value.element_size() for value in self.initial_state(batch_size).values())

    @property
    def state_dtype(self) -> torch.dtype:
        """The parameters' dtype, at least float32: states outlive many roundings."""
        return torch.promote_types(self._anchor.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the parameters, and so new states, live."""
        return self._anchor.device

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        """The shapes that entries of a state have, rows aside."""
        return {name: value.shape[1:] for name, value in self.initial_state(1).items()}

    def _harmed_segment(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Run a segment that holds NaN, inf or what soon would be, whose harm must end at the next `start`.

        A parallel path cannot multiply the harm away (0 * NaN is NaN), forwards or backwards. So it sees
        zeros for NaN and inf, and the rest of the harmed episode is marked NaN afterwards. What is finite and
        huge may do no harm, a norm may see to it: rows that hold such are run step by step.
        """
        bad_input = ~torch.isfinite(x).all(dim=-1)
        bad_state = torch.zeros_like(start[:, 0])
        newborn = self.initial_state(1)
        harm = {name: ~torch.isfinite(value) & (value != newborn[name]) for name, value in state.items()}
        for value in harm.values():
            bad_state = bad_state | value.flatten(1).any(dim=1) if value.ndim > 1 else bad_state | value
        born = latest(start)
        tainted = (bad_state[:, None] & (born < 0)) | (latest(bad_input) >= born.clamp(min=0))
        clean_state = {name: value.masked_fill(harm[name], 0) for name, value in state.items()}
        clean = torch.where(torch.isfinite(x), x, 0)
        huge = (_row_sizes(clean, clean_state) >= _HARMLESS).nonzero().flatten()
        calm_state = {
            name: value.index_fill(0, huge, 0) if value.is_floating_point() else value
            for name, value in clean_state.items()
        }
        y, after = self.segment(clean.index_fill(0, huge, 0), calm_state, start)
        if len(huge):
            rows = {name: value[huge] for name, value in clean_state.items()}
            of_rows, after_rows = Memory.segment(self, clean[huge], rows, start[huge])
            y = y.index_copy(0, huge, of_rows)
            after = {name: value.index_copy(0, huge, after_rows[name]) for name, value in after.items()}
        nan = float("nan")
        y = torch.where(tainted[..., None], nan, y)
        after = {
            name: torch.where(tainted[:, -1].view(-1, *[1] * (value.ndim - 1)), nan, value)
            if value.is_floating_point()
            else value
            for name, value in after.items()
        }
        return y, after


def _is_as_built(module: nn.Module) -> bool:
    """Return whether weights say all that a module does: it has no hook, and no layer is a stranger's.

    An adapter in a layer's place is one, as is a layer of whole numbers. A memory inside answers for itself.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    children = [child for child in module.children() if not isinstance(child, Memory)]
    return all(type(child).__module__.startswith(_BUILDERS) and _is_as_built(child) for child in children)


def check_start(start: Tensor | None, x: Tensor) -> None:
    """Raise ValueError, or TypeError, unless `start` is None or one bool for every step of `x`."""
    if start is None:
        return
    if not isinstance(start, Tensor):
        raise TypeError(f"start is a {type(start).__name__}; expected a tensor, as torch.as_tensor(start) is")
    if start.shape != x.shape[:2]:
        raise ValueError(f"start has shape {tuple(start.shape)}; expected {tuple(x.shape[:2])}")
    # Numbers would be taken for masks by some memories and for amounts by others.
    if start.dtype != torch.bool:
        raise ValueError(f"start has dtype {start.dtype}; expected torch.bool, so pass start.bool()")


def check_state(state: State, x: Tensor) -> None:
    """Raise TypeError unless `state` is a dict, and ValueError unless it has as many rows as `x`."""
    if not hasattr(state, "items"):
        raise TypeError(f"state={state!r:.100}; expected a dict, as initial_state({len(x)}) begins with")
    for name, value in state.items():
        if value.shape[0] != x.shape[0]:
            raise ValueError(f"state {name!r} has {value.shape[0]} rows; x has {x.shape[0]}")


def check_entries(state: State, shapes: dict[str, torch.Size], owner: str) -> None:
    """Raise ValueError unless a state has entries of these shapes, rows aside: some kernels do not look."""
    name = _misfit(state, shapes)
    if name is None:
        return
    if name not in state:
        raise ValueError(
            f"state has {', '.join(map(repr, state)) or 'nothing'}, and no {name!r}: begin with "
            f"initial_state of this {owner}, and go on with what it returned"
        )
    given, rows = tuple(state[name].shape), len(state[name])
    raise ValueError(f"state {name!r} has shape {given}; expected {(rows, *shapes[name])}")


def _misfit(state: State, shapes: dict[str, torch.Size]) -> str | None:
    """Return the first entry that a state lacks or has in another shape, None if there is none."""
    for name, shape in shapes.items():
        if name not in state or state[name].shape[1:] != shape:
            return name
    return None


def detach_state(state: State) -> State:
    """Return the same state, cut from the graph that computed it."""
    return {name: value.detach() for name, value in state.items()}


def _size(x: Tensor, state: State) -> Tensor:
    """Return the sum of the lengths of all that is given, NaN or inf if any of it is."""
    first, *others = (_length(value) for value in _floats(x, state))
    return sum(others, first)


def _row_sizes(x: Tensor, state: State) -> Float[Tensor, " batch"]:
    """Return the same for each row."""
    sizes = [_length(value.reshape(len(value), -1), dim=1) for value in _floats(x, state)]
    return torch.stack(sizes).sum(0)


def _floats(x: Tensor, state: State) -> list[Tensor]:
    return [value.detach() for value in (x, *state.values()) if value.is_floating_point()]


def _length(value: Tensor, dim: int | None = None) -> Tensor:
    # A length in half precision would overflow where nothing in it is large.
    return torch.linalg.vector_norm(value, dim=dim, dtype=torch.promote_types(value.dtype, torch.float32))


def with_born(state: State, newborn: State, born: Bool[Tensor, " batch"]) -> State:
    """Return `state` with the rows that are `born` replaced by that of `newborn`, which is one row."""
    return {
        name: torch.where(born.view(-1, *[1] * (value.ndim - 1)), newborn[name], value)
        for name, value in state.items()
    }

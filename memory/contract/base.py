"""The contract every memory obeys: a sequence and a state in, a sequence and a state out.

A state is a flat dict of tensors, batch first, of fixed shapes. A memory keeps no other state.
`start[b, t]` marks `x[b, t]` as the first input of a new episode: row b is reset before it.
Nine laws follow from these rules. `memory/contract/check.py` lists and tests the laws.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.memory.contract.clock import last_marked
from scrubjay.memory.contract.stepper import PlainStepper, Stepper, can_fold

State = dict[str, Tensor]
"""State of a memory: a flat dict of tensors of fixed shapes, batch first. The keys are the memory's own."""
PaperValues = Mapping[str, object] | str
"""Values of a config's fields as in a paper, or the reason why there are none."""
SAME_AS_PAPER: PaperValues = {}
"""`MemoryConfig.paper_values` of a memory whose defaults follow its paper."""

_TRUSTED_PACKAGES = ("torch.nn.", "scrubjay.")
"""Packages whose layers are fully described by their weights."""

_MAX_SAFE_NORM = 1e12
"""Largest norm whose product with an equally large norm and with weights is still finite in float32."""


@dataclass(frozen=True)
class MemoryConfig(ABC):
    """Base config of a memory; a subclass adds more sizes.

    Raises:
        ValueError: If `dim` is odd or below 8.
    """

    paper_values: ClassVar[PaperValues] = "its config class states no values of a paper"
    """Values of fields with which the memory follows its paper; empty if the defaults do. A string is the
    reason why the memory has no such values. `make(name, paper=True)` uses the values or raises the
    reason."""

    dim: int = 64
    """Width of inputs and outputs; even, at least 8."""

    def __post_init__(self) -> None:
        if self.dim < 8 or self.dim % 2:
            raise ValueError(f"dim={self.dim}: a memory's width must be even and at least 8")

    def check_positive(self, *names: str) -> None:
        """Raise ValueError that names the first of these fields whose value is below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def check_above_zero(self, *names: str) -> None:
        """Raise ValueError that names the first of these fields whose value is not finite or not above 0."""
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be finite and above 0")

    @abstractmethod
    def build(self) -> Memory:
        """Return a newly initialized memory of these sizes."""


class Memory(nn.Module, ABC):
    """Sequence layer from `[batch, time, dim]` to the same shape, with a state of fixed shape.

    A subclass implements `initial_state` and `step`. The method `segment` processes several steps. By default
    it is a loop over `step`. A memory with a parallel implementation overrides `segment`.
    """

    retrieves: bool = False
    """True for memories that look up stored items; these have `read(x, state)`. An instance may override the
    value of its class."""
    stores: tuple[str, ...] | None = None
    """Names of the state entries that hold stored items, if `retrieves` is True; None for all entries. Slots
    of these entries that no step has written may hold any value."""
    no_gradient: tuple[str, ...] = ()
    """Names of parameters that by design receive no gradient; an instance may extend this list."""
    max_segment: int | None = None
    """Longest segment that `segment` processes at once; `forward` divides a longer one. For memories whose
    cost of a segment grows with the square of its length; None for no limit."""
    _anchor: Tensor

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        # Moves with the parameters. Reading its device and dtype is cheaper than looking up a parameter.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Return the state at the start of an episode, batch first, on the parameters' device."""

    @abstractmethod
    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Process one input per row. During compilation no branch may depend on the values of a tensor."""

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment of several steps; `start` may be True at any step.

        `forward` calls an override only with finite values whose products cannot overflow. Rows with
        larger finite values are processed by this default implementation.

        Args:
            x: Inputs.
            state: State before the first input.
            start: True for the first input of an episode.
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

        Outside autocast, `x` must have the parameters' dtype.

        Raises:
            ValueError: If the shape or dtype of `x` or `start` is wrong, or if an entry of the state is
                missing or has a wrong shape.
            TypeError: If `start` is not a tensor or `state` is not a dict.
        """
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [batch, time, {self.dim}]")
        if not x.is_floating_point():
            raise ValueError(f"x has dtype {x.dtype}; expected floats, so pass x.float()")
        own = self._anchor.dtype
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"x has dtype {x.dtype}, the memory's parameters have {own}; pass x.to({own})")
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
        if self.max_segment is not None and x.shape[1] > self.max_segment:
            return self._divide_segment(x, state, start, self.max_segment)
        state = self.blank_unwritten(state)
        # The default loop over `step` handles NaN and inf as single steps do: a reset selects other values.
        if type(self).segment is Memory.segment or bool(_total_norm(x, state) < _MAX_SAFE_NORM):
            return self.segment(x, state, start)
        return self._segment_nonfinite(x, state, start)

    @torch.no_grad()
    def recall(self, x: Float[Tensor, "batch dim"], state: State) -> Recall | None:
        """Return a record of what `step` reads and writes for these inputs; None if there is no record.

        The record has no gradients. By default it contains no reads and one write, whose strength is the
        relative change of the state.
        """
        _, after = self.step(x, state)
        return Recall.from_state_change(self.blank_unwritten(state), self.blank_unwritten(after))

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in slots that were never written, for memories that have such slots."""
        return state

    def reset_state(self, state: State, start: Bool[Tensor, "batch"]) -> State:
        """Return `state` with the rows marked by `start` reset to the initial state."""
        if not torch.compiler.is_compiling() and not start.any():
            return state
        return reset_rows(state, self.initial_state(1), start)

    def stepper(self, state: State) -> Stepper:
        """Return a `Stepper` that continues from `state` without gradients, with the current weights."""
        return PlainStepper(self, state)

    def can_use_stepper(self, memory_class: type[Memory], state: State) -> bool:
        """Return True if a stepper written for `memory_class.step` is valid for this memory and state."""
        same = (
            type(self).step is memory_class.step
            and _is_unmodified(self)
            and _find_mismatch(state, self._shapes) is None
        )
        return same and can_fold(self.device, self._anchor.dtype, state)

    def state_bytes(self, batch_size: int = 1) -> int:
        """Return the exact size of the state in bytes."""
        return sum(value.numel() * value.element_size() for value in self.initial_state(batch_size).values())

    @property
    def state_dtype(self) -> torch.dtype:
        """Dtype of states: that of the parameters, but at least float32, since rounding errors accumulate."""
        return torch.promote_types(self._anchor.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Device of the parameters and of new states."""
        return self._anchor.device

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        """Shapes of the state entries without the batch dimension."""
        return {name: value.shape[1:] for name, value in self.initial_state(1).items()}

    def _divide_segment(self, x: Tensor, state: State, start: Tensor, steps: int) -> tuple[Tensor, State]:
        """Process a segment in pieces of `steps` steps, one after the other."""
        outputs = []
        for own_x, own_start in zip(x.split(steps, dim=1), start.split(steps, dim=1), strict=True):
            y, state = self.forward(own_x, state, own_start)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    def _segment_nonfinite(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Process a segment with NaN, inf or huge values. Their effect must end at the next `start`.

        A parallel implementation cannot mask NaN by a factor 0 in the forward or backward pass, since 0 * NaN
        is NaN. Therefore NaN and inf are replaced by zeros before the call of `segment`. Afterwards all
        outputs from such a value to the end of its episode are set to NaN. Huge finite values may be
        harmless, for example before a norm. Rows with huge values are processed step by step.
        """
        bad_input = ~torch.isfinite(x).all(dim=-1)
        bad_state = torch.zeros_like(start[:, 0])
        initial = self.initial_state(1)
        nonfinite = {name: ~torch.isfinite(value) & (value != initial[name]) for name, value in state.items()}
        for value in nonfinite.values():
            bad_state = bad_state | value.flatten(1).any(dim=1) if value.ndim > 1 else bad_state | value
        last_start = last_marked(start)
        is_nan = (bad_state[:, None] & (last_start < 0)) | (last_marked(bad_input) >= last_start.clamp(min=0))
        clean_state = {name: value.masked_fill(nonfinite[name], 0) for name, value in state.items()}
        clean = torch.where(torch.isfinite(x), x, 0)
        huge = (_row_norms(clean, clean_state) >= _MAX_SAFE_NORM).nonzero().flatten()
        safe_state = {
            name: value.index_fill(0, huge, 0) if value.is_floating_point() else value
            for name, value in clean_state.items()
        }
        y, after = self.segment(clean.index_fill(0, huge, 0), safe_state, start)
        if len(huge):
            rows = {name: value[huge] for name, value in clean_state.items()}
            row_outputs, after_rows = Memory.segment(self, clean[huge], rows, start[huge])
            y = y.index_copy(0, huge, row_outputs)
            after = {name: value.index_copy(0, huge, after_rows[name]) for name, value in after.items()}
        nan = float("nan")
        y = torch.where(is_nan[..., None], nan, y)
        after = {
            name: torch.where(is_nan[:, -1].view(-1, *[1] * (value.ndim - 1)), nan, value)
            if value.is_floating_point()
            else value
            for name, value in after.items()
        }
        return y, after


class Read(NamedTuple):
    """Steps that a memory reads in one attention operation, with their attention weights."""

    steps: Int[Tensor, "batch items"]
    """Numbers of the steps that are read, from 0 at the start of the episode; -1 for padding."""
    weights: Float[Tensor, "batch items"]
    """Weight of each step, averaged over heads: at least 0, with a sum of at most 1."""

    @classmethod
    def from_weights(cls, steps: Int[Tensor, "batch *items"], weights: Float[Tensor, "batch *items"]) -> Read:
        """Return a float32 `Read`. Padding gets weight 0. Weights with a sum above 1 are scaled to sum 1."""
        steps, weights = steps.flatten(1), weights.flatten(1).float()
        weights = torch.where(steps < 0, 0, weights)
        return cls(steps, weights / weights.sum(dim=1, keepdim=True).clamp(min=1))


class Recall(NamedTuple):
    """Record of one step of a memory: attention weights of its reads, and strengths of its writes."""

    reads: dict[str, Read]
    """Dict from the name of each read operation, such as "window, layer 0", to its attention weights."""
    writes: dict[str, Float[Tensor, " batch"]]
    """Dict from the name of each write operation, such as "surprise, layer 0", to its strength."""

    def select_rows(self, rows: slice) -> Recall:
        """Return the reads and writes of these batch rows."""
        reads = {name: Read(read.steps[rows], read.weights[rows]) for name, read in self.reads.items()}
        return Recall(reads, {name: strength[rows] for name, strength in self.writes.items()})

    @classmethod
    def from_state_change(cls, before: dict[str, Tensor], after: dict[str, Tensor]) -> Recall | None:
        """Return a record whose write strength is the change of the state, relative to the norm of `after`.

        Return None if the state has no float entries.
        """
        rows = [
            torch.stack([before[name].flatten(1), value.flatten(1)]).double()
            for name, value in after.items()
            if value.is_floating_point()
        ]
        if not rows:
            return None
        old, new = torch.cat(rows, dim=2)
        change, length = (new - old).norm(dim=1), new.norm(dim=1)
        return cls(
            {}, {"change of the state relative to its norm": torch.where(length > 0, change / length, 0.0)}
        )

    @classmethod
    def from_parts(cls, parts: dict[str, Recall | None]) -> Recall | None:
        """Join the records of several parts, with part names as prefixes; None if no part has a record."""
        records = {name: part for name, part in parts.items() if part is not None}
        reads = {f"{part}, {name}": read for part, own in records.items() for name, read in own.reads.items()}
        writes = {f"{part}, {name}": one for part, own in records.items() for name, one in own.writes.items()}
        return cls(reads, writes) if records else None


def _is_unmodified(module: nn.Module) -> bool:
    """Check that the weights fully describe a module: it has no hooks and no third-party layers.

    Adapters and quantized layers are third-party layers. A nested memory checks itself.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    children = [child for child in module.children() if not isinstance(child, Memory)]
    return all(
        type(child).__module__.startswith(_TRUSTED_PACKAGES) and _is_unmodified(child) for child in children
    )


def check_start(start: Tensor | None, x: Tensor) -> None:
    """Raise TypeError or ValueError unless `start` is None or a tensor with one bool per step of `x`."""
    if start is None:
        return
    if not isinstance(start, Tensor):
        raise TypeError(
            f"start is a {type(start).__name__}; expected a tensor, so pass torch.as_tensor(start)"
        )
    if start.shape != x.shape[:2]:
        raise ValueError(f"start has shape {tuple(start.shape)}; expected {tuple(x.shape[:2])}")
    # Some memories would treat numbers as masks, others as factors.
    if start.dtype != torch.bool:
        raise ValueError(f"start has dtype {start.dtype}; expected torch.bool, so pass start.bool()")


def check_state(state: State, x: Tensor) -> None:
    """Raise TypeError unless `state` is a dict, ValueError unless all entries have the batch size of `x`."""
    if not hasattr(state, "items"):
        raise TypeError(f"state={state!r:.100}; expected a dict such as initial_state({len(x)})")
    for name, value in state.items():
        if value.shape[0] != x.shape[0]:
            raise ValueError(f"state {name!r} has batch size {value.shape[0]}; expected {x.shape[0]} as in x")


def check_entries(state: State, shapes: dict[str, torch.Size], owner: str) -> None:
    """Raise ValueError unless a state has entries with these names and shapes.

    Some kernels do not check shapes. `shapes` leaves out the batch dimension. `owner` is the type of module
    for the message.
    """
    name = _find_mismatch(state, shapes)
    if name is None:
        return
    if name not in state:
        raise ValueError(
            f"state has {', '.join(map(repr, state)) or 'no entries'}, but no {name!r}: start from "
            f"initial_state of this {owner} and pass the state that each call returns"
        )
    actual, rows = tuple(state[name].shape), len(state[name])
    raise ValueError(f"state {name!r} has shape {actual}; expected {(rows, *shapes[name])}")


def _find_mismatch(state: State, shapes: dict[str, torch.Size]) -> str | None:
    """Return the name of the first entry that is missing or has another shape, None if all entries match."""
    for name, shape in shapes.items():
        if name not in state or state[name].shape[1:] != shape:
            return name
    return None


def detach_state(state: State) -> State:
    """Return the state detached from the graph that computed it."""
    return {name: value.detach() for name, value in state.items()}


def add_affixes(part: State, *, prefix: str = "", suffix: str = "") -> State:
    """Return the entries of a part's state, with the prefix and suffix added to their names.

    A team has `actor/hidden`, a sequence model `block_0.hidden`, a layer `keys_0`. These forms must not
    change, since checkpoints contain the names.
    """
    return {f"{prefix}{name}{suffix}": value for name, value in part.items()}


def select_part(state: State, *, prefix: str = "", suffix: str = "") -> State:
    """Return the entries whose names have this prefix and suffix, with both removed from the names."""
    return {
        name.removeprefix(prefix).removesuffix(suffix): value
        for name, value in state.items()
        if name.startswith(prefix) and name.endswith(suffix)
    }


def _total_norm(x: Tensor, state: State) -> Tensor:
    """Return the sum of the norms of input and state entries; NaN or inf if any value is NaN or inf."""
    first, *others = (_norm(value) for value in _float_tensors(x, state))
    return sum(others, first)


def _row_norms(x: Tensor, state: State) -> Float[Tensor, " batch"]:
    """Return for each row the sum of the norms of the input and all state entries."""
    sizes = [_norm(value.reshape(len(value), -1), dim=1) for value in _float_tensors(x, state)]
    return torch.stack(sizes).sum(0)


def _float_tensors(x: Tensor, state: State) -> list[Tensor]:
    return [value.detach() for value in (x, *state.values()) if value.is_floating_point()]


def _norm(value: Tensor, dim: int | None = None) -> Tensor:
    # A norm in half precision could overflow although no value is large.
    return torch.linalg.vector_norm(value, dim=dim, dtype=torch.promote_types(value.dtype, torch.float32))


def reset_rows(state: State, initial: State, is_start: Bool[Tensor, " batch"]) -> State:
    """Return `state` with the single row of `initial` in place of each row where `is_start` is True."""
    return {
        name: torch.where(is_start.view(-1, *[1] * (value.ndim - 1)), initial[name], value)
        for name, value in state.items()
    }

"""Memories one after the other as one memory: a hybrid of what each does well.

A part reads the normed stream and adds to it (pre-norm and residual), as layers of attention and recurrence
do in hybrid sequence models (Griffin, De et al. 2024, arXiv 2402.19427; Samba, Ren et al. 2024, arXiv
2406.07522). With `residual=False` nothing stands between the parts, neither norms nor sums: each reads what
the one before it gave, as stacked recurrent layers do, and a stack of one part is that part.

`make("stack", dim=64, parts=(make_config("gru", dim=64), make_config("hcam", dim=64, chunk_size=8)))`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.recalled import Recalled
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.gru import GRUConfig
from scrubjay.memory.sink import SinkConfig


@dataclass(frozen=True)
class StackConfig(MemoryConfig):
    """What a `Stack` is made of.

    Raises ValueError on no part, or on one of another width, and TypeError on what is no config.
    """

    parts: tuple[MemoryConfig, ...] = cast("tuple[MemoryConfig, ...]", None)
    """Memories in the order that the stream passes them, all as wide as the stack; by default `sink`, then
    `gru`."""
    residual: bool = True
    """Whether a part reads a normed stream and adds to it; otherwise it replaces it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts is None:
            # The default has the stack's width, which only an instance knows.
            object.__setattr__(self, "parts", (SinkConfig(dim=self.dim), GRUConfig(dim=self.dim)))
        if not self.parts:
            raise ValueError(f"parts={self.parts}: a stack needs at least one memory")
        for index, part in enumerate(self.parts):
            if not isinstance(part, MemoryConfig):
                raise TypeError(
                    f"parts={self.parts!r:.200}: expected configs, each as make_config(NAME) makes one"
                )
            if part.dim != self.dim:
                raise ValueError(
                    f"parts[{index}], a {type(part).__name__}, has dim={part.dim}, the stack dim={self.dim}: "
                    f"all must be as wide; `at_width({self.dim})` makes them so"
                )

    @property
    def chunk_size(self) -> int:
        """The longest chunk of any part, 1 where none has chunks."""
        return max(getattr(part, "chunk_size", 1) for part in self.parts)

    def at_width(self, dim: int) -> StackConfig:
        """Return the same stack with every part `dim` wide."""
        parts = (
            part.at_width(dim) if isinstance(part, StackConfig) else dataclasses.replace(part, dim=dim)
            for part in self.parts
        )
        return dataclasses.replace(self, dim=dim, parts=tuple(parts))

    def build(self) -> Stack:
        """Return freshly initialised memories of these sizes."""
        return Stack(self)


class Stack(Memory):
    """Memories one after the other.

    State: that of every part i, names preceded by `i.`. Retrieves if any part does.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.parts = nn.ModuleList(part.build() for part in config.parts)
        self.norms = nn.ModuleList(
            nn.LayerNorm(self.dim) if config.residual else nn.Identity() for _ in config.parts
        )
        self.residual = config.residual
        built = cast("list[Memory]", list(self.parts))
        self.retrieves = any(part.retrieves for part in built)
        self.stores = tuple(
            f"{index}.{name}"
            for index, part in enumerate(built)
            if part.retrieves
            for name in (part.initial_state(1) if part.stores is None else part.stores)
        )
        self.no_gradient = tuple(
            f"parts.{index}.{name}" for index, part in enumerate(built) for name in part.no_gradient
        )

    def initial_state(self, batch_size: int) -> State:
        """Return every part's state at the birth of an episode."""
        state: State = {}
        for index, part in enumerate(self.parts):
            state |= named(cast("Memory", part).initial_state(batch_size), prefix=f"{index}.")
        return state

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return what the stores of all parts that retrieve answer to the queries `x`, summed."""
        total = torch.zeros_like(x)
        for _, norm, part, own in self._each(state):
            if part.retrieves:
                total = total + part.read(norm(x), own)
        return total

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance every row by one input."""
        after: State = {}
        for index, norm, part, own in self._each(state):
            y, own = part.step(norm(x), own)
            x = x + y if self.residual else y
            after |= named(own, prefix=f"{index}.")
        return x, after

    @torch.no_grad()
    def recalled(self, x: Float[Tensor, "batch dim"], state: State) -> Recalled | None:
        """Return what those parts recall that say it."""
        parts = {}
        for index, norm, part, own in self._each(state):
            normed = norm(x)
            parts[f"part {index}"] = part.recalled(normed, own)
            y, _ = part.step(normed, own)
            x = x + y if self.residual else y
        return Recalled.of_parts(parts)

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows with a stepper for every part."""
        return _StackStepper(self, state) if self.steps_as(Stack, state) else super().stepper(state)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment, part by part."""
        after: State = {}
        for index, norm, part, own in self._each(state):
            y, own = part.segment(norm(x), own, start)
            x = x + y if self.residual else y
            after |= named(own, prefix=f"{index}.")
        return x, after

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros where no part has stored anything."""
        blanked: State = {}
        for index, _, part, own in self._each(state):
            blanked |= named(part.blank_unwritten(own), prefix=f"{index}.")
        return blanked

    def _each(self, state: State) -> Iterator[tuple[int, nn.Module, Any, State]]:
        """Yield each part's number, norm, module (a `Memory`; some `read`) and state."""
        for index, (norm, part) in enumerate(zip(self.norms, self.parts, strict=True)):
            yield index, norm, part, part_of(state, prefix=f"{index}.")


class _StackStepper(Stepper):
    """Advances rows of a stack, part by part."""

    def __init__(self, stack: Stack, state: State) -> None:
        self.residual = stack.residual
        self.norms = list(stack.norms)
        self.parts = [part.stepper(own) for _, _, part, own in stack._each(state)]

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the outputs of one input each."""
        for norm, part in zip(self.norms, self.parts, strict=True):
            y = part.step(norm(x), start)
            x = x + y if self.residual else y
        return x

    def state(self, rows: Tensor | None = None) -> State:
        """Return the state of these rows, by default of all."""
        state: State = {}
        for index, part in enumerate(self.parts):
            state |= named(part.state(rows), prefix=f"{index}.")
        return state

"""Stack of several memories as one hybrid memory.

Every part is pre-norm with a residual connection. Layers of attention and recurrence are combined in this way
in hybrid sequence models (Griffin, De et al. 2024, arXiv 2402.19427; Samba, Ren et al. 2024, arXiv
2406.07522). With `residual=False`, there are no norms and no residual connections: each part reads the output
of the previous part, as in stacked recurrent layers. A stack of a single part then equals this part.

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

from scrubjay.memory.contract.base import Memory, MemoryConfig, Recall, State, add_affixes, select_part
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.registry import make_config


@dataclass(frozen=True)
class StackConfig(MemoryConfig):
    """Parts of a `Stack`.

    Raises ValueError if there are no parts, or if the width of a part is not the width of the stack. Raises
    TypeError if a part is not a config.
    """

    paper_values = "it has no paper; pass parts=(make_config(NAME, paper=True), ...) instead"

    parts: tuple[MemoryConfig, ...] = cast("tuple[MemoryConfig, ...]", None)
    """Memories in order, all with the width of the stack; by default `sink`, then `gru`."""
    residual: bool = True
    """Use pre-norm and residual connections. If False, each part reads the output of the previous part."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts is None:
            # The default has the stack's width, which only an instance knows.
            object.__setattr__(
                self, "parts", (make_config("sink", dim=self.dim), make_config("gru", dim=self.dim))
            )
        if not self.parts:
            raise ValueError(f"parts={self.parts}: a stack needs at least one memory")
        for index, part in enumerate(self.parts):
            if not isinstance(part, MemoryConfig):
                raise TypeError(
                    f"parts={self.parts!r:.200}: expected configs, as returned by make_config(NAME)"
                )
            if part.dim != self.dim:
                raise ValueError(
                    f"parts[{index}], a {type(part).__name__}, has dim={part.dim}, but the stack has "
                    f"dim={self.dim}; create the part with dim={self.dim}"
                )

    @property
    def chunk_size(self) -> int:
        """Largest chunk size of all parts; 1 if no part has chunks."""
        return max(getattr(part, "chunk_size", 1) for part in self.parts)

    def at_width(self, dim: int) -> StackConfig:
        """Return a copy of the config with every part `dim` wide."""
        parts = (
            part.at_width(dim) if isinstance(part, StackConfig) else dataclasses.replace(part, dim=dim)
            for part in self.parts
        )
        return dataclasses.replace(self, dim=dim, parts=tuple(parts))

    def build(self) -> Stack:
        """Return a newly initialized stack of these sizes."""
        return Stack(self)


class Stack(Memory):
    """Memories in sequence.

    State: the entries of every part i (from 0), prefixed with `i.`. `retrieves` is True if at least one part
    retrieves.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.parts = nn.ModuleList(part.build() for part in config.parts)
        self.norms = nn.ModuleList(
            nn.LayerNorm(self.dim) if config.residual else nn.Identity() for _ in config.parts
        )
        self.residual = config.residual
        memories = cast("list[Memory]", list(self.parts))
        self.retrieves = any(part.retrieves for part in memories)
        self.stores = tuple(
            f"{index}.{name}"
            for index, part in enumerate(memories)
            if part.retrieves
            for name in (part.initial_state(1) if part.stores is None else part.stores)
        )
        self.no_gradient = tuple(
            f"parts.{index}.{name}" for index, part in enumerate(memories) for name in part.no_gradient
        )

    def initial_state(self, batch_size: int) -> State:
        """Return every part's state at the start of an episode."""
        state: State = {}
        for index, part in enumerate(self.parts):
            state |= add_affixes(cast("Memory", part).initial_state(batch_size), prefix=f"{index}.")
        return state

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return the sum of the read-outs for the queries `x` over all parts with `retrieves=True`."""
        total = torch.zeros_like(x)
        for _, norm, part, own in self._each(state):
            if part.retrieves:
                total = total + part.read(norm(x), own)
        return total

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Process one step of every row."""
        after: State = {}
        for index, norm, part, own in self._each(state):
            y, own = part.step(norm(x), own)
            x = x + y if self.residual else y
            after |= add_affixes(own, prefix=f"{index}.")
        return x, after

    @torch.no_grad()
    def recall(self, x: Float[Tensor, "batch dim"], state: State) -> Recall | None:
        """Return the reads and writes of one step in all parts that report them."""
        parts = {}
        for index, norm, part, own in self._each(state):
            normalized = norm(x)
            parts[f"part {index}"] = part.recall(normalized, own)
            y, _ = part.step(normalized, own)
            x = x + y if self.residual else y
        return Recall.from_parts(parts)

    def stepper(self, state: State) -> Stepper:
        """Return a stepper made of the steppers of all parts."""
        return _StackStepper(self, state) if self.can_use_stepper(Stack, state) else super().stepper(state)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment of every row, part by part."""
        after: State = {}
        for index, norm, part, own in self._each(state):
            y, own = part.segment(norm(x), own, start)
            x = x + y if self.residual else y
            after |= add_affixes(own, prefix=f"{index}.")
        return x, after

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in the unwritten slots of all parts."""
        result: State = {}
        for index, _, part, own in self._each(state):
            result |= add_affixes(part.blank_unwritten(own), prefix=f"{index}.")
        return result

    def _each(self, state: State) -> Iterator[tuple[int, nn.Module, Any, State]]:
        """Yield the index, norm, memory module and state of each part."""
        for index, (norm, part) in enumerate(zip(self.norms, self.parts, strict=True)):
            yield index, norm, part, select_part(state, prefix=f"{index}.")


class _StackStepper(Stepper):
    """Stepper of a stack, which calls the steppers of its parts in order."""

    def __init__(self, stack: Stack, state: State) -> None:
        self.residual = stack.residual
        self.norms = list(stack.norms)
        self.parts = [part.stepper(own) for _, _, part, own in stack._each(state)]

    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the output of one step of every row."""
        for norm, part in zip(self.norms, self.parts, strict=True):
            y = part.step(norm(x), start)
            x = x + y if self.residual else y
        return x

    def state(self, rows: Tensor | None = None) -> State:
        """Return the state of `rows`, by default of all rows."""
        state: State = {}
        for index, part in enumerate(self.parts):
            state |= add_affixes(part.state(rows), prefix=f"{index}.")
        return state

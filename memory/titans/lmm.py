"""Titans' long-term memory by itself: layers of neural memory, which learn at test time.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), "LMM" in its section 4.3; what the paper leaves
open is decided in `memory/titans/neural.py`. Each layer is a neural memory and a feed-forward part, both on a
normed input with a plain residual. A layer learns its own normed inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, State
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.recalled import Read, Recalled
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.parts.feed_forward import feed_forward
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.titans.neural import NeuralMemory, NeuralMemoryConfig
from scrubjay.memory.titans.stepping import MatrixSteps, TitansStepper, is_matrix


@dataclass(frozen=True)
class TitansConfig(NeuralMemoryConfig):
    """Sizes of `Titans`. Raises ValueError on one that cannot work."""

    num_layers: int = 1
    """Layers, each with a memory of its own."""
    feed_forward_ratio: int = 2
    """Width of the feed-forward part's hidden layer, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_layers", "feed_forward_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def build(self) -> Titans:
        """Return a freshly initialised memory of these sizes."""
        return Titans(self)


class TitansLayer(nn.Module, ABC):
    """A layer of `Titans` or of one of its architectures.

    A subclass adds how memory and attention are put together.
    """

    in_place: bool = False
    """Whether `advance` is written."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        hidden = config.feed_forward_ratio * config.dim
        self.memory_norm = nn.LayerNorm(config.dim)
        self.memory = NeuralMemory(config)
        self.feed_forward = feed_forward(config.dim, hidden)

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return the layer's state at the birth of an episode."""
        return self.memory.initial_state(batch_size, dtype, device)

    @abstractmethod
    def step(
        self, x: Float[Tensor, "batch dim"], state: State, time: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, " batch"], State]:
        """Return the output of one input, its surprise and the state after."""

    @abstractmethod
    def segment(
        self,
        x: Float[Tensor, "batch time dim"],
        state: State,
        grid: ChunkGrid,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time"], State]:
        """Return the outputs of a segment, its surprises and the state after."""

    def reads(
        self, x: Float[Tensor, "batch dim"], state: State, time: Int[Tensor, " batch"]
    ) -> dict[str, Read]:
        """Return what attention reads of which steps, by what it is; nothing without attention."""
        return {}

    def opened(self, caches: State, age: Int[Tensor, " batch"]) -> Any:
        """Return what `advance` takes of what is kept besides the memory, none of it the given tensors.

        `age` counts the steps that rows have taken in their episodes.
        """
        return None

    def closed(self, caches: Any) -> State:
        """Undo `opened`."""
        return {}

    def forget(self, caches: Any, rows: Int[Tensor, " some"]) -> None:
        """Empty what these rows keep besides the memory."""

    def advance(
        self,
        x: Float[Tensor, "batch dim"],
        memory: MatrixSteps,
        caches: Any,
        time: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the output of one input; what else than its memory is kept of it goes to `caches`.

        `memory` does what the layer's does, elsewhere.
        """
        raise NotImplementedError

    def feed(self, x: Tensor) -> Tensor:
        """Return `x` with the feed-forward part added."""
        return x + self.feed_forward(x)


class _MemoryLayer(TitansLayer):
    in_place = True

    def step(self, x, state, time):
        y, surprise, after = self.memory.step(self.memory_norm(x), state, time)
        return self.feed(x + y), surprise, after

    def segment(self, x, state, grid):
        y, surprise, after = self.memory.segment(self.memory_norm(x), state, grid)
        return self.feed(x + y), surprise, after

    def advance(self, x, memory, caches, time):
        return self.feed(x + memory.step(self.memory_norm(x)))


class Titans(Memory):
    """Layers of neural memory and feed-forward.

    State: that of its layer for every layer l, names followed by `_l` (that of `NeuralMemory` and, in the
    architectures, of attention); and `time` `[batch]`, steps since the episode began.
    """

    layer_class: ClassVar[type[TitansLayer]] = _MemoryLayer

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.chunk_size = config.chunk_size
        self.layers = nn.ModuleList(self.layer_class(config) for _ in range(config.num_layers))

    def initial_state(self, batch_size: int) -> State:
        """Return a state that has learned nothing."""
        state: State = {"time": torch.zeros(batch_size, dtype=torch.int64, device=self.device)}
        for index, layer in enumerate(self._layers):
            state |= named(layer.initial_state(batch_size, self.state_dtype, self.device), suffix=f"_{index}")
        return state

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance every row by one input."""
        time = state["time"]
        after: State = {"time": time + 1}
        for index, layer in enumerate(self._layers):
            x, _, learned = layer.step(x, part_of(state, suffix=f"_{index}"), time)
            after |= named(learned, suffix=f"_{index}")
        return x, after

    @torch.no_grad()
    def recalled(self, x: Float[Tensor, "batch dim"], state: State) -> Recalled:
        """Return how surprising a step is to every layer's memory, as strong as which it is written.

        And what attention read, in layers that have some.
        """
        time, reads, written = state["time"], {}, {}
        for index, layer in enumerate(self._layers):
            own = part_of(state, suffix=f"_{index}")
            for name, read in layer.reads(x, own, time).items():
                reads[f"{name}, layer {index}"] = read
            x, written[f"surprise, layer {index}"], _ = layer.step(x, own, time)
        return Recalled(reads, written)

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows in place, where memories are matrices and nothing more."""
        layers = list(self._layers)
        if not self.steps_as(Titans, state) or not all(
            layer.in_place and is_matrix(layer.memory) for layer in layers
        ):
            return super().stepper(state)
        return TitansStepper(layers, state, self.chunk_size)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment, chunk by chunk, whatever the pattern of `start`."""
        y, _, after = self.segment_with_surprise(x, state, start)
        return y, after

    def segment_with_surprise(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time"], State]:
        """Return outputs, every step's surprise and the state after the last.

        Surprise is the length of the gradient that the step gives its memory, the mean over heads and layers,
        and carries no graph: something to reward or to replay by.
        """
        grid = ChunkGrid.of(state["time"], start, self.chunk_size)
        after: State = {"time": grid.clock.after}
        surprises = []
        for index, layer in enumerate(self._layers):
            x, surprise, learned = layer.segment(x, part_of(state, suffix=f"_{index}"), grid)
            surprises.append(surprise)
            after |= named(learned, suffix=f"_{index}")
        return x, torch.stack(surprises).mean(0), after

    @property
    def _layers(self) -> Iterable[TitansLayer]:
        return cast("Iterable[TitansLayer]", self.layers)

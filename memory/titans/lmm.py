"""Titans' long-term memory alone: layers of neural memory that learn at test time.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663) calls this model "LMM" in section 4.3. The paper
leaves some choices open, which `memory/titans/neural.py` documents. Each layer is a neural memory and a
feed-forward block, both pre-norm with a residual connection. A layer learns from its own normed inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, PaperValues, Read, Recall, State, add_affixes, select_part
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.parts.layers import feed_forward
from scrubjay.memory.titans.incremental import MatrixSteps, TitansStepper, is_matrix
from scrubjay.memory.titans.neural import NeuralMemory, NeuralMemoryConfig
from scrubjay.memory.titans.paper import PaperNeuralMemory


@dataclass(frozen=True)
class TitansConfig(NeuralMemoryConfig):
    """Configuration of `Titans`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {
        "chunk_size": 1,
        "depth": 2,
        "read_before_write": False,
        "bound_steps": False,
        "follow_paper": True,
    }

    num_layers: int = 1
    """Number of layers, each with its own memory."""
    feed_forward_ratio: int = 2
    """Hidden width of the feed-forward block, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("num_layers", "feed_forward_ratio")

    def build(self) -> Titans:
        """Return a newly initialized memory."""
        return Titans(self)


class TitansLayer(nn.Module, ABC):
    """Layer of `Titans` or of one of its architectures with attention.

    A subclass defines the combination of memory and attention.
    """

    in_place: bool = True
    """True if the layer implements `advance`."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        hidden = config.feed_forward_ratio * config.dim
        self.memory_norm = nn.LayerNorm(config.dim)
        self.memory = (PaperNeuralMemory if config.follow_paper else NeuralMemory)(config)
        self.feed_forward = feed_forward(config.dim, hidden)

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return the layer's state at the start of an episode."""
        return self.memory.initial_state(batch_size, dtype, device)

    @abstractmethod
    def step(
        self, x: Float[Tensor, "batch dim"], state: State, time: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, " batch"], State]:
        """Return the output and the surprise of one step, and the next state."""

    @abstractmethod
    def segment(
        self,
        x: Float[Tensor, "batch time dim"],
        state: State,
        grid: ChunkGrid,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time"], State]:
        """Return the outputs and the surprises of all steps of a segment, and the next state."""

    def attention_reads(
        self, x: Float[Tensor, "batch dim"], state: State, time: Int[Tensor, " batch"]
    ) -> dict[str, Read]:
        """Return the attention weights over past steps, by name; an empty dict without attention."""
        return {}

    def open_caches(self, state: State, age: Int[Tensor, " batch"]) -> Any:
        """Return a copy of the attention caches in the format that `advance` uses; None without attention.

        The copy has the methods `forget(rows)`, which clears the caches of these rows, and `state()`, which
        returns the caches as state entries. `state` is the state of the layer. `age` is the number of steps
        in each row's episode.
        """
        return None

    @abstractmethod
    def advance(
        self,
        x: Float[Tensor, "batch dim"],
        memory: MatrixSteps,
        caches: Any,
        time: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the output of one step and update `caches` in place.

        `memory` is the in-place stepper of the layer's neural memory. The stepper holds the memory's state.
        """

    def feed(self, x: Tensor) -> Tensor:
        """Return `x` plus the feed-forward block of `x`."""
        return x + self.feed_forward(x)


class _MemoryLayer(TitansLayer):
    def step(self, x, state, time):
        y, surprise, after = self.memory.step(self.memory_norm(x), state, time)
        return self.feed(x + y), surprise, after

    def segment(self, x, state, grid):
        y, surprise, after = self.memory.segment(self.memory_norm(x), state, grid)
        return self.feed(x + y), surprise, after

    def advance(self, x, memory, caches, time):
        return self.feed(x + memory.step(self.memory_norm(x)))


class Titans(Memory):
    """Stack of neural memory and feed-forward layers.

    State: the entries of every layer l, with the suffix `_l`. These are the entries of `NeuralMemory`. In
    architectures with attention, they include the attention caches. `time` `[batch]` is the number of steps
    in the episode.
    """

    layer_class: ClassVar[type[TitansLayer]] = _MemoryLayer

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.chunk_size = config.chunk_size
        self.layers = nn.ModuleList(self.layer_class(config) for _ in range(config.num_layers))

    def initial_state(self, batch_size: int) -> State:
        """Return the initial state of all layers."""
        state: State = {"time": torch.zeros(batch_size, dtype=torch.int64, device=self.device)}
        for index, layer in enumerate(self._layers):
            state |= add_affixes(
                layer.initial_state(batch_size, self.state_dtype, self.device), suffix=f"_{index}"
            )
        return state

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Process one step of every row."""
        time = state["time"]
        after: State = {"time": time + 1}
        for index, layer in enumerate(self._layers):
            x, _, layer_state = layer.step(x, select_part(state, suffix=f"_{index}"), time)
            after |= add_affixes(layer_state, suffix=f"_{index}")
        return x, after

    @torch.no_grad()
    def recall(self, x: Float[Tensor, "batch dim"], state: State) -> Recall:
        """Return the strength of one step's write to each layer's memory. The strength is the surprise.

        Layers with attention also return their attention weights.
        """
        time, reads, surprises = state["time"], {}, {}
        for index, layer in enumerate(self._layers):
            own = select_part(state, suffix=f"_{index}")
            for name, read in layer.attention_reads(x, own, time).items():
                reads[f"{name}, layer {index}"] = read
            x, surprises[f"surprise, layer {index}"], _ = layer.step(x, own, time)
        return Recall(reads, surprises)

    def stepper(self, state: State) -> Stepper:
        """Return an in-place stepper, or the default stepper if a layer does not support in-place steps."""
        layers = list(self._layers)
        if not self.can_use_stepper(Titans, state) or not all(
            layer.in_place and is_matrix(layer.memory) for layer in layers
        ):
            return super().stepper(state)
        return TitansStepper(layers, state, self.chunk_size)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment of every row, chunk by chunk, for any pattern of `start`."""
        y, _, after = self.segment_with_surprise(x, state, start)
        return y, after

    def segment_with_surprise(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time"], State]:
        """Return the outputs, the surprise of every step and the next state.

        The surprise of a step is the length of the gradient that the step writes to the memory, averaged over
        heads and layers. Surprises are detached from the graph. They can serve as an intrinsic reward or a
        replay priority.
        """
        grid = ChunkGrid.from_starts(state["time"], start, self.chunk_size)
        after: State = {"time": grid.clock.age_after}
        surprises = []
        for index, layer in enumerate(self._layers):
            x, surprise, layer_state = layer.segment(x, select_part(state, suffix=f"_{index}"), grid)
            surprises.append(surprise)
            after |= add_affixes(layer_state, suffix=f"_{index}")
        return x, torch.stack(surprises).mean(0), after

    @property
    def _layers(self) -> Iterable[TitansLayer]:
        return cast("Iterable[TitansLayer]", self.layers)

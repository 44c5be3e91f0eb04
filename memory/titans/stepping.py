"""The steps of a neural memory that is one matrix per head, without forming the matrix at every step.

Inside a chunk gradients are taken at the chunk's anchor, and a token's is the outer product of its key and
its error. So what a row has learned is a sum of two matrices that stood at the chunk's beginning and of few
such, whose factors retention and momentum change: a step keeps key, error and factors, and only where
a chunk ends are the matrices formed. `kernels.neural_memory_step` says what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels import Learning, NeuralState
from scrubjay.kernels.neural.network import LEAST_LOG, NEGLIGIBLE
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.titans.heads import split_heads


def is_matrix(memory: Any) -> bool:
    """Return whether the memory's heads are matrices and nothing more, as `MatrixSteps` takes them."""
    config = memory.config
    titans = memory.learning == Learning() and "momentum" in memory.gate_names
    return config.depth == 1 and titans and not config.norm and not config.residual


class Moment(NamedTuple):
    """Where rows are in this step."""

    born: Int[Tensor, " some"] | None
    """Rows that begin an episode."""
    full: Int[Tensor, " some"] | None
    """Rows whose chunk ends with it."""
    time: Int[Tensor, " batch"]
    """Steps that rows have taken in their episodes before it."""


class MatrixSteps:
    """One memory's rows: matrices `[R, D, D]` and, of the present chunk, factors, keys and errors; R = B H.

    What a step adds is written at one place for all rows, round and round. Factors are `[R, 2 + C]`, of the
    two matrices and of the products: `of_delta` says how much of each is in what was learned, `of_momentum`
    in how it moves.
    """

    def __init__(self, memory: Any, state: dict[str, Tensor]) -> None:
        self.memory, self.heads, self.width = memory, memory.heads, memory.width
        self.size = memory.chunk_size
        delta = state["delta"]
        self.batch = len(delta)
        shape = (self.batch * self.heads, self.width, self.width)
        self.base, self.motion, self.anchor = (
            state[name].reshape(shape).clone() for name in ("delta", "momentum", "anchor")
        )
        rows = shape[0]
        self.keys, self.errors = (delta.new_zeros(rows, self.size, self.width) for _ in range(2))
        self.of_delta, self.of_momentum = (delta.new_zeros(rows, 2 + self.size) for _ in range(2))
        self.of_delta[:, 0] = self.of_momentum[:, 1] = 1
        self.place = -1
        self.weights = memory.weights[0]
        self.tail = state["tail"].clone() if "tail" in state else None
        self.read_first = memory.config.read_before_write
        self.head = torch.arange(self.heads)
        self.moment: Moment | None = None

    def begin(self, moment: Moment) -> None:
        """Go on to a step."""
        self.moment = moment
        if moment.born is not None:
            self._forget(self._of_heads(moment.born))
            if self.tail is not None:
                self.tail.index_fill_(0, moment.born, 0)

    def recall(self, asked: Float[Tensor, "batch heads width"]) -> Float[Tensor, "batch heads width"]:
        """Return what was learned of queries before the present chunk; nothing is learned."""
        rows = self.batch * self.heads
        born_with = self._born_with(asked)[:, None]
        return torch.baddbmm(born_with, asked.reshape(rows, 1, self.width), self.anchor).view(asked.shape)

    def step(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return what one input recalls."""
        memory, moment, rows, width = self.memory, self.moment, self.batch * self.heads, self.width
        assert moment is not None
        projected = memory.project_in(x)
        if self.tail is not None:
            taken = torch.cat([self.tail, projected[:, None]], dim=1)
            self.tail = taken[:, 1:]
            projected = (taken * memory.convolution).sum(1)
        query, key, value = split_heads(projected, self.heads)
        born_with = [self._born_with(part) for part in (query, key)]
        query, key, value = (part.reshape(rows, width) for part in (query, key, value))
        step_size, log_momentum, log_retention = memory._gates(memory.gates(x))
        kept, retained = (
            log.clamp(min=LEAST_LOG).exp().view(rows, 1) for log in (log_momentum, log_retention)
        )
        error = torch.baddbmm(born_with[1][:, None], key[:, None], self.anchor)[:, 0] - value
        if self.read_first:
            y = self._read(query, born_with[0])
        self.place = (self.place + 1) % self.size
        self.keys[:, self.place], self.errors[:, self.place] = key, error
        self.of_momentum *= kept
        self.of_momentum[:, 2 + self.place] = -step_size.view(rows)
        self.of_delta *= retained
        # The product that stood here before is of a chunk that is over.
        self.of_delta[:, 2 + self.place] = 0
        self.of_delta += self.of_momentum
        if not self.read_first:
            y = self._read(query, born_with[0])
        if moment.full is not None:
            ended = self._of_heads(moment.full)
            learned, moves = (torch.hardshrink(part, NEGLIGIBLE) for part in self._formed(ended))
            self.base[ended], self.motion[ended], self.anchor[ended] = learned, moves, learned
            self._reset_factors(ended)
        return memory.finish(x, y.view(self.batch, self.heads, width))

    def state(self) -> dict[str, Tensor]:
        """Return the memory's state of all rows."""
        learned, moves = self._formed(torch.arange(len(self.base)))
        shape = (self.batch, self.heads, -1)
        found = {
            "delta": learned.view(shape),
            "momentum": moves.view(shape),
            "anchor": self.anchor.clone().view(shape),
        }
        return found if self.tail is None else found | {"tail": self.tail.clone()}

    def _born_with(self, part: Float[Tensor, "batch heads width"]) -> Float[Tensor, "rows width"]:
        """Return the products with the learned weights."""
        products = torch.bmm(part.transpose(0, 1), self.weights)
        return products.transpose(0, 1).reshape(-1, self.width)

    def _read(self, query: Tensor, born_with: Tensor) -> Tensor:
        factors = self.of_delta
        alike = torch.bmm(query[:, None], self.keys.mT)[:, 0] * factors[:, 2:]
        read = torch.baddbmm(born_with[:, None], alike[:, None], self.errors)
        read = torch.baddbmm(read, (query * factors[:, :1])[:, None], self.base)
        return torch.baddbmm(read, (query * factors[:, 1:2])[:, None], self.motion)[:, 0]

    def _formed(self, rows: Int[Tensor, " some"]) -> tuple[Tensor, Tensor]:
        """Return what was learned and how it moves, of these rows of heads."""
        keys, errors = self.keys[rows].mT, self.errors[rows]
        base, motion = self.base[rows], self.motion[rows]
        formed = []
        for factors in (self.of_delta[rows], self.of_momentum[rows]):
            of_base, of_motion, of_products = factors.split([1, 1, self.size], dim=1)
            sum_ = torch.bmm(keys * of_products[:, None], errors)
            formed.append(sum_.addcmul_(of_base[..., None], base).addcmul_(of_motion[..., None], motion))
        return formed[0], formed[1]

    def _forget(self, rows: Int[Tensor, " some"]) -> None:
        for part in (self.base, self.motion, self.anchor, self.keys, self.errors):
            part.index_fill_(0, rows, 0)
        self._reset_factors(rows)

    def _reset_factors(self, rows: Int[Tensor, " some"]) -> None:
        for factors, own in ((self.of_delta, 0), (self.of_momentum, 1)):
            factors.index_fill_(0, rows, 0)
            factors[:, own].index_fill_(0, rows, 1)

    def _of_heads(self, rows: Int[Tensor, " some"]) -> Int[Tensor, " some_heads"]:
        return (rows[:, None] * self.heads + self.head).flatten()


class TitansStepper(Stepper):
    """Advances rows of a `Titans`, or of an architecture of it, whose memories are matrices.

    What layers keep besides their memories is theirs, and overwritten.

    Args:
        layers: Its layers.
        state: The rows.
        chunk_size: Steps per chunk.
    """

    @torch.no_grad()
    def __init__(self, layers: Sequence[Any], state: dict[str, Tensor], chunk_size: int) -> None:
        self.layers, self.chunk_size = layers, chunk_size
        self.time = state["time"].numpy().copy()
        self.memories, self.caches = [], []
        for index, layer in enumerate(layers):
            own = part_of(state, suffix=f"_{index}")
            self.memories.append(MatrixSteps(layer.memory, own))
            others = own.keys() - {*NeuralState._fields, "tail"}
            self.caches.append(layer.opened({name: own[name] for name in others}, state["time"]))

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the outputs of one input each."""
        moment = self._moment(start)
        for index, (layer, memory) in enumerate(zip(self.layers, self.memories, strict=True)):
            memory.begin(moment)
            if moment.born is not None:
                layer.forget(self.caches[index], moment.born)
            x = layer.advance(x, memory, self.caches[index], moment.time)
        return x

    @torch.no_grad()
    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        state = {"time": torch.from_numpy(self.time.copy())}
        for index, memory in enumerate(self.memories):
            caches = self.layers[index].closed(self.caches[index])
            state |= named(memory.state() | caches, suffix=f"_{index}")
        return state if rows is None else {name: value.index_select(0, rows) for name, value in state.items()}

    def _moment(self, start: Tensor | None) -> Moment:
        born = None
        if start is not None:
            self.time[start.numpy()] = 0
            born = start.nonzero()[:, 0]
        full = np.flatnonzero(self.time % self.chunk_size == self.chunk_size - 1)
        time = torch.from_numpy(self.time.copy())
        self.time += 1
        return Moment(born, torch.from_numpy(full) if len(full) else None, time)

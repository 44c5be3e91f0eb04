"""Steps of a neural memory with one matrix per head, without computing the matrix at every step.

Delta is the change of the weights from their learned initial values. Inside a chunk, all gradients are taken
at the weights of the chunk's start. The gradient of a token is the outer product of its key and its error.
Delta at a step is therefore a weighted sum of these terms: delta at the chunk's start, momentum at the
chunk's start, and the outer products of the chunk's steps so far. Retention and
momentum change only the factors of this sum. A step stores its key and error, and updates the factors. The
matrices are computed at the end of the chunk, and equal the matrices of `kernels.neural_memory_step` up to
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels import Learning
from scrubjay.kernels.neural.network import LEAST_LOG, NEGLIGIBLE
from scrubjay.memory.contract.base import add_affixes, select_part
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.titans.heads import split_heads


def is_matrix(memory: Any) -> bool:
    """Return True if every head of the memory is a plain matrix, as `MatrixSteps` requires."""
    config = memory.config
    titans = memory.learning == Learning() and "momentum" in memory.gate_names
    titans = titans and not config.follow_paper
    return config.depth == 1 and titans and not config.norm and not config.residual


class StepInfo(NamedTuple):
    """Positions of all rows in their episodes and chunks, at one step."""

    start_rows: Int[Tensor, " some"] | None
    """Rows that start an episode; None if the caller passed no `start`."""
    full_rows: Int[Tensor, " some"] | None
    """Rows whose chunk ends with this step; None if there are none."""
    time: Int[Tensor, " batch"]
    """Number of earlier steps in each row's episode."""


class MatrixSteps:
    """Incremental inference of one memory, for R = batch * heads matrices with D rows and columns.

    A chunk has C steps. Delta is the change of the weights from the learned initial weights. `base` and
    `motion` `[R, D, D]` are delta and momentum at the start of the present chunk, or in the initial `state`
    if that is later. `keys` and `errors` `[R, C, D]` are ring buffers of the last C steps. All rows write a
    step to the same slot. The present delta is a weighted sum of `base`, `motion` and the C outer products of
    `keys` and `errors`. Its coefficients are `delta_factors` `[R, 2 + C]`. The present momentum is the same
    sum with the coefficients `momentum_factors`.
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
        self.delta_factors, self.momentum_factors = (delta.new_zeros(rows, 2 + self.size) for _ in range(2))
        self.delta_factors[:, 0] = self.momentum_factors[:, 1] = 1
        self.place = -1
        self.weights = memory.weights[0]
        self.tail = state["tail"].clone() if "tail" in state else None
        self.read_first = memory.config.read_before_write
        self.head = torch.arange(self.heads)
        self.step_info: StepInfo | None = None

    def begin(self, step_info: StepInfo) -> None:
        """Start a step, and reset the rows that start an episode."""
        self.step_info = step_info
        if step_info.start_rows is not None:
            self._forget(self._expand_rows(step_info.start_rows))
            if self.tail is not None:
                self.tail.index_fill_(0, step_info.start_rows, 0)

    def recall(self, queries: Float[Tensor, "batch heads width"]) -> Float[Tensor, "batch heads width"]:
        """Return the outputs for `queries` with the weights from the start of the present chunk."""
        rows = self.batch * self.heads
        initial = self._apply_initial_weights(queries)[:, None]
        return torch.baddbmm(initial, queries.reshape(rows, 1, self.width), self.anchor).view(queries.shape)

    def step(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Write one input and return the output of its query."""
        memory, step_info, rows, width = self.memory, self.step_info, self.batch * self.heads, self.width
        assert step_info is not None
        projections = memory.project_in(x)
        if self.tail is not None:
            inputs = torch.cat([self.tail, projections[:, None]], dim=1)
            self.tail = inputs[:, 1:]
            projections = (inputs * memory.convolution).sum(1)
        query, key, value = split_heads(projections, self.heads)
        initial = [self._apply_initial_weights(part) for part in (query, key)]
        query, key, value = (part.reshape(rows, width) for part in (query, key, value))
        step_size, log_momentum, log_retention = memory._gates(memory.gates(x))
        momentum_factor, retention = (
            log.clamp(min=LEAST_LOG).exp().view(rows, 1) for log in (log_momentum, log_retention)
        )
        error = torch.baddbmm(initial[1][:, None], key[:, None], self.anchor)[:, 0] - value
        if self.read_first:
            y = self._read(query, initial[0])
        self.place = (self.place + 1) % self.size
        self.keys[:, self.place], self.errors[:, self.place] = key, error
        self.momentum_factors *= momentum_factor
        self.momentum_factors[:, 2 + self.place] = -step_size.view(rows)
        self.delta_factors *= retention
        # The previous product in this slot belongs to an earlier chunk.
        self.delta_factors[:, 2 + self.place] = 0
        self.delta_factors += self.momentum_factors
        if not self.read_first:
            y = self._read(query, initial[0])
        if step_info.full_rows is not None:
            full_rows = self._expand_rows(step_info.full_rows)
            delta, momentum = (
                torch.hardshrink(part, NEGLIGIBLE) for part in self._compute_matrices(full_rows)
            )
            self.base[full_rows], self.motion[full_rows], self.anchor[full_rows] = delta, momentum, delta
            self._reset_factors(full_rows)
        return memory.finish(x, y.view(self.batch, self.heads, width))

    def state(self) -> dict[str, Tensor]:
        """Return the state of all rows."""
        delta, momentum = self._compute_matrices(torch.arange(len(self.base)))
        shape = (self.batch, self.heads, -1)
        result = {
            "delta": delta.view(shape),
            "momentum": momentum.view(shape),
            "anchor": self.anchor.clone().view(shape),
        }
        return result if self.tail is None else result | {"tail": self.tail.clone()}

    def _apply_initial_weights(self, part: Float[Tensor, "batch heads width"]) -> Float[Tensor, "rows width"]:
        """Return the products of vectors with the initial weights of their heads."""
        products = torch.bmm(part.transpose(0, 1), self.weights)
        return products.transpose(0, 1).reshape(-1, self.width)

    def _read(self, query: Tensor, initial: Tensor) -> Tensor:
        factors = self.delta_factors
        similarities = torch.bmm(query[:, None], self.keys.mT)[:, 0] * factors[:, 2:]
        read = torch.baddbmm(initial[:, None], similarities[:, None], self.errors)
        read = torch.baddbmm(read, (query * factors[:, :1])[:, None], self.base)
        return torch.baddbmm(read, (query * factors[:, 1:2])[:, None], self.motion)[:, 0]

    def _compute_matrices(self, rows: Int[Tensor, " some"]) -> tuple[Tensor, Tensor]:
        """Return delta and momentum of these memory rows. A memory row is one head of one batch row."""
        keys, errors = self.keys[rows].mT, self.errors[rows]
        base, motion = self.base[rows], self.motion[rows]
        matrices = []
        for factors in (self.delta_factors[rows], self.momentum_factors[rows]):
            of_base, of_motion, of_products = factors.split([1, 1, self.size], dim=1)
            sum_ = torch.bmm(keys * of_products[:, None], errors)
            matrices.append(sum_.addcmul_(of_base[..., None], base).addcmul_(of_motion[..., None], motion))
        return matrices[0], matrices[1]

    def _forget(self, rows: Int[Tensor, " some"]) -> None:
        for part in (self.base, self.motion, self.anchor, self.keys, self.errors):
            part.index_fill_(0, rows, 0)
        self._reset_factors(rows)

    def _reset_factors(self, rows: Int[Tensor, " some"]) -> None:
        for factors, own in ((self.delta_factors, 0), (self.momentum_factors, 1)):
            factors.index_fill_(0, rows, 0)
            factors[:, own].index_fill_(0, rows, 1)

    def _expand_rows(self, rows: Int[Tensor, " some"]) -> Int[Tensor, " some_heads"]:
        return (rows[:, None] * self.heads + self.head).flatten()


class TitansStepper(Stepper):
    """Stepper of `Titans` or a subclass. Every memory head must be a plain matrix (see `is_matrix`).

    The stepper copies the initial state. It then updates the memories and the attention caches in place. At
    width 64 on one thread, `step` of `Titans` takes 1.2, 1.3 and 1.5 times as long for 1, 8 and 64 rows, that
    of `TitansMAC` 1.5, 1.6 and 2.2 times, that of `TitansMAG` and `TitansMAL` 1.7, 1.8 and 2.1 times.

    Args:
        layers: Layers of the memory.
        state: State of the memory before the first step.
        chunk_size: Steps per chunk.
    """

    @torch.no_grad()
    def __init__(self, layers: Sequence[Any], state: dict[str, Tensor], chunk_size: int) -> None:
        self.layers, self.chunk_size = layers, chunk_size
        self.time = state["time"].numpy().copy()
        self.memories, self.caches = [], []
        for index, layer in enumerate(layers):
            own = select_part(state, suffix=f"_{index}")
            self.memories.append(MatrixSteps(layer.memory, own))
            self.caches.append(layer.open_caches(own, state["time"]))

    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the output of one step of every row."""
        step_info = self._begin_step(start)
        for layer, memory, caches in zip(self.layers, self.memories, self.caches, strict=True):
            memory.begin(step_info)
            if caches is not None and step_info.start_rows is not None:
                caches.forget(step_info.start_rows)
            x = layer.advance(x, memory, caches, step_info.time)
        return x

    @torch.no_grad()
    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of `rows`, by default of all rows."""
        state = {"time": torch.from_numpy(self.time.copy())}
        for index, (memory, caches) in enumerate(zip(self.memories, self.caches, strict=True)):
            attention = {} if caches is None else caches.state()
            state |= add_affixes(memory.state() | attention, suffix=f"_{index}")
        return state if rows is None else {name: value.index_select(0, rows) for name, value in state.items()}

    def _begin_step(self, start: Tensor | None) -> StepInfo:
        start_rows = None
        if start is not None:
            self.time[start.numpy()] = 0
            start_rows = start.nonzero()[:, 0]
        full_rows = np.flatnonzero(self.time % self.chunk_size == self.chunk_size - 1)
        time = torch.from_numpy(self.time.copy())
        self.time += 1
        return StepInfo(start_rows, torch.from_numpy(full_rows) if len(full_rows) else None, time)

"""The steps of `GTrXL`: windows in rings, the products of a gate's two inputs taken at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.stepping.window import Ring, WindowSteps


class GTrXLStepper(Stepper):
    """Advances rows of a `GTrXL`.

    Args:
        layers: Its layers.
        state: The rows.
    """

    @torch.no_grad()
    def __init__(self, layers: Iterable[Any], state: dict[str, Tensor]) -> None:
        recent, age = state["recent"], state["age"]
        self.window, self.age = recent.shape[2], age.clone()
        self.ring = Ring(self.window, age, recent.dtype)
        self.layers = [
            _Layer(layer, WindowSteps(layer.attention, self.ring, recent[:, index]))
            for index, layer in enumerate(layers)
        ]

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the outputs of one input each."""
        born = None if start is None else start.nonzero()[:, 0]
        if born is not None:
            self.age.index_fill_(0, born, 0)
        self.ring.advance(born)
        for layer in self.layers:
            x = layer.step(x, born)
        self.age += 1
        return x

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        recent = torch.stack([layer.attention.recent(self.window) for layer in self.layers], dim=1)
        if rows is None:
            return {"recent": recent, "age": self.age.clone()}
        return {"recent": recent.index_select(0, rows), "age": self.age.index_select(0, rows)}


class _Layer:
    def __init__(self, layer: Any, attention: WindowSteps) -> None:
        self.norm, self.attention = layer.attention_norm, attention
        self.norm_before, self.inward, _, self.outward = layer.feed_forward
        self.attention_gate = _Gate(layer.attention_gate)
        self.feed_forward_gate = _Gate(layer.feed_forward_gate)

    def step(self, x: Tensor, born: Tensor | None) -> Tensor:
        read = self.attention.step(x.new_zeros(()), self.norm(x), born)
        x = self.attention_gate(x, read.relu_())
        hidden = self.inward(self.norm_before(x)).relu_()
        return self.feed_forward_gate(x, self.outward(hidden).relu_())


class _Gate:
    """A `Gate` of the layer, with its reset and update products in one."""

    def __init__(self, gate: Any) -> None:
        self.dim = len(gate.bias)
        of_output, self.of_candidate = gate.update.weight.split([2 * self.dim, self.dim])
        self.of_both = torch.cat([of_output, gate.stream.weight], dim=1)
        self.bias = torch.cat([torch.zeros_like(gate.bias), -gate.bias])
        self.of_reset = gate.reset_stream.weight.T

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        both = functional.linear(torch.cat([y, x], dim=1), self.of_both, self.bias).sigmoid_()
        reset, gate = both.split(self.dim, dim=1)
        candidate = torch.addmm(functional.linear(y, self.of_candidate), reset * x, self.of_reset)
        # tanh, four times as fast.
        candidate.mul_(2).sigmoid_().mul_(2).sub_(1)
        return torch.lerp(x, candidate, gate)

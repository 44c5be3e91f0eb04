"""Neural memory with the equations of the papers as printed, one step at a time.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), equations 13 and 14, and Miras (Behrouz,
Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), equations 24 to 27. With the weights W, the key k, the
value v, the gates α (retention), η (momentum) and θ (step size), and the loss l, a step of Titans is

    S_t = η_t S_{t-1} - θ_t gradient l(M(W_{t-1}, k_t), v_t),    W_t = α_t W_{t-1} + S_t.

The memories of Miras have no momentum. Moneta accumulates A in place of W, and W = A / norm_q(A)^(q - 2).
Memora has log W in place of W on the right, and W_t = c softmax of the result.

Weights decay to zero, and those of Memora to equal weights. Where Moneta's A decays to zero, its W grows
without bound. A norm of A below 1e-3 is therefore set to 1e-3. The output hardly changes, because the norm of
the network removes the scale of W. The gradient is taken at the weights of the
previous step, so there are no chunks. A step reads after its write unless `read_before_write` is True.

The gates of Miras have one value per channel, the product of two low-rank matrices and the input. A value
belongs to an output channel of the last layer and to an input channel of the first of two layers. These are
the only axes of the weights that are as wide as a head. The norm of the network has trained weights.

A segment is a loop over steps. `memory/titans/neural.py` is faster.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import QNorm, Simplex
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.neural.network import NORM_EPSILON, gelu_slope, silu_slope
from scrubjay.memory.contract.base import State
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.titans.neural import NeuralMemory, NeuralMemoryConfig

_LEAST_NORM = 1e-3
"""Least norm of Moneta's accumulated weights."""


class PaperNeuralMemory(NeuralMemory):
    """Memory with one network per batch row and head, which learns at every step.

    State: `weights` `[batch, heads, weights]` holds the weights after the last step; those of Moneta before
    the division, and the logarithms of those of Memora. `momentum` has the same shape, if there is momentum.
    `has_weights` `[batch]` is 1 if `weights` is in use, and 0 if the next step uses the learned initial
    weights. `tail` is that of `NeuralMemory`.
    """

    def __init__(self, config: NeuralMemoryConfig) -> None:
        super().__init__(config)
        self.is_simplex = isinstance(self.learning.mirror, Simplex)
        if self.is_simplex:
            # `NeuralMemory` has logarithms of weights, divided by this factor.
            with torch.no_grad():
                for layer in self.weights:
                    layer.mul_(layer.shape[-2] / math.exp(self._log_total))
        if config.gate_rank:
            first = nn.Linear(config.dim, config.gate_rank, bias=False)
            last = nn.Linear(config.gate_rank, len(self.gate_names) * config.dim)
            with torch.no_grad():
                last.bias.copy_(self.get_parameter("gates.bias").repeat_interleave(self.width))
                if "threshold" in self.gate_names:
                    # A threshold applies to one coordinate of an error instead of its length.
                    last.bias[-config.dim :] = math.log(math.expm1(1))
            self.gates = nn.Sequential(first, last)
        if config.norm:
            self.norm_scale = nn.Parameter(torch.ones(self.heads, self.width))
            self.norm_shift = nn.Parameter(torch.zeros(self.heads, self.width))

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return the initial state: zeros."""
        state = super().initial_state(batch_size, dtype, device)
        weights = {"weights": state.pop("delta")} | {n: x for n, x in state.items() if n != "anchor"}
        return weights | {"has_weights": torch.zeros(batch_size, dtype=torch.int64, device=device)}

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, time: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, " batch"], State]:
        """Return the output and the surprise of one step, and the next state.

        `time` is the number of the step in its episode, from 0.
        """
        (query, key, value), after = self._project_step(x, state)
        y, surprise, new_state = self._advance(query, key, value, self.gates(x), time, state)
        return self.finish(x, y), surprise, after | new_state

    def segment(
        self,
        x: Float[Tensor, "batch time dim"],
        state: State,
        grid: ChunkGrid,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time"], State]:
        """Return the outputs and the surprises of all steps of a segment, and the next state."""
        heads, after = self._project_segment(x, state, grid)
        logits = self.gates(x)
        outputs, surprises = [], []
        for t in range(x.shape[1]):
            query, key, value = heads[:, t].unbind(1)
            y, surprise, state = self._advance(query, key, value, logits[:, t], grid.clock.step[:, t], state)
            outputs.append(y)
            surprises.append(surprise)
        return self.finish(x, torch.stack(outputs, dim=1)), torch.stack(surprises, dim=1), after | state

    @without_autocast
    def _advance(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        logits: Tensor,
        time: Int[Tensor, " batch"],
        state: State,
    ) -> tuple[Float[Tensor, "batch heads width"], Float[Tensor, " batch"], State]:
        """Return the read, the surprise and the next weights of one step.

        Args:
            query: Query of every head.
            key: Key of every head.
            value: Value of every head.
            logits: Outputs of the map to the gates.
            time: Number of the step in its episode, from 0.
            state: Weights and momentum before the step.
        """
        dtype, (is_first, is_cut) = state["weights"].dtype, self._borders(time, state["has_weights"])
        query, key, value = (part.to(dtype) for part in (query, key, value))
        gates = self._paper_gates(logits.to(dtype))
        before = state["weights"].where(~is_cut, state["weights"].detach())
        before = torch.where(is_first, _pack(self._initial_weights(dtype)), before)
        layers = self._unpack(before)
        weights = self._map_weights(layers)
        inputs, deltas = self._gradients(key, value, weights, gates.get("threshold"))
        changes, momentum = [], {}
        for index, (x, delta) in enumerate(zip(inputs, deltas, strict=True)):
            step_size = self._along(gates["step"], index)
            changes.append(-step_size * x[..., :, None] * delta[..., None, :])
        change = _pack(changes)
        if "momentum" in gates:
            old = state["momentum"].where(~is_cut, state["momentum"].detach())
            change = change + gates["momentum"] * torch.where(is_first, 0, old)
            momentum = {"momentum": change}
        after = [
            self._along(gates["retention"], index) * layer + part
            for index, (layer, part) in enumerate(zip(layers, self._unpack(change), strict=True))
        ]
        if self.is_simplex:
            after = [torch.log_softmax(layer, dim=-2) + self._log_total for layer in after]
        if isinstance(self.learning.mirror, QNorm):
            after = [_raise_norm(layer, self.learning.mirror.q) for layer in after]
        read = weights if self.config.read_before_write else self._map_weights(after)
        squares = sum(
            x.square().sum(-1) * delta.square().sum(-1) for x, delta in zip(inputs, deltas, strict=True)
        )
        surprise = torch.as_tensor(squares).detach().sqrt().mean(-1)
        new_state = {
            "weights": _pack(after),
            "has_weights": torch.ones_like(state["has_weights"]),
            **momentum,
        }
        return self._run_network(query, read)[2], surprise, new_state

    def _borders(
        self, time: Tensor, has_weights: Tensor
    ) -> tuple[Bool[Tensor, "batch 1 1"], Bool[Tensor, "batch 1 1"]]:
        """Return masks of rows with the initial weights, and of rows in which the gradient stops."""
        cut = self.config.bptt_chunks
        stops = time % cut == 0 if cut else torch.zeros_like(time, dtype=torch.bool)
        return ((time == 0) | (has_weights == 0))[:, None, None], stops[:, None, None]

    def _paper_gates(self, logits: Float[Tensor, "batch gates"]) -> dict[str, Tensor]:
        """Return the gates by name, with the retention in place of forgetting."""
        parts = logits.unflatten(-1, (len(self.gate_names), self.heads, -1)).unbind(-3)
        by_name = dict(zip(self.gate_names, parts, strict=True))
        gates = {
            "step": self.config.max_token_step * torch.sigmoid(by_name["step"]),
            "retention": torch.sigmoid(-by_name["forgetting"]),
        }
        if "momentum" in by_name:
            gates["momentum"] = torch.sigmoid(by_name["momentum"])
        if "threshold" in by_name:
            gates["threshold"] = functional.softplus(by_name["threshold"])
        return gates

    def _along(self, gate: Tensor, layer: int) -> Float[Tensor, "batch heads _In _Out"]:
        """Return a gate, shaped to multiply the weights of a layer."""
        return gate[..., :, None] if layer < len(self.weights) - 1 else gate[..., None, :]

    def _initial_weights(self, dtype: torch.dtype) -> list[Tensor]:
        """Return the learned initial weights; their logarithms if they are distributions."""
        layers = [layer.to(dtype) for layer in self.weights]
        if self.is_simplex:
            layers = [torch.log_softmax(layer, dim=-2) + self._log_total for layer in layers]
        return layers

    def _map_weights(self, layers: list[Tensor]) -> list[Tensor]:
        """Return the weights of the network, from those that accumulate the steps."""
        if self.is_simplex:
            return [layer.exp() for layer in layers]
        return [self.learning.mirror.weights(layer) for layer in layers]

    @property
    def _log_total(self) -> float:
        """Logarithm of the sum of the weights into an output, for weights that are distributions."""
        mirror = self.learning.mirror
        assert isinstance(mirror, Simplex)
        return math.log(mirror.total)

    def _unpack(self, flat: Float[Tensor, "*heads weights"]) -> list[Tensor]:
        """Return the weights of all layers, `[*heads, in, out]`."""
        sizes = [a * b for a, b in self.config.layer_widths]
        parts = zip(flat.split(sizes, dim=-1), self.config.layer_widths, strict=True)
        return [part.unflatten(-1, widths) for part, widths in parts]

    def _run_network(
        self, x: Float[Tensor, "batch heads width"], weights: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Float[Tensor, "batch heads width"]]:
        """Return the inputs of all layers, their products with the weights, and the output."""
        activate = functional.silu if self.learning.activation == "silu" else functional.gelu
        inputs, products = [x], [_multiply(x, weights[0])]
        for weight in weights[1:]:
            inputs.append(activate(products[-1]))
            products.append(_multiply(inputs[-1], weight))
        y = products[-1]
        if self.config.norm:
            y = functional.layer_norm(y, y.shape[-1:], eps=NORM_EPSILON)
            y = y * self.norm_scale.to(y.dtype) + self.norm_shift.to(y.dtype)
        return inputs, products, x + y if self.config.residual else y

    def _gradients(
        self, key: Tensor, value: Tensor, weights: list[Tensor], threshold: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the inputs of all layers, and the gradients of the loss with respect to their products."""
        inputs, products, y = self._run_network(key, weights)
        gradient = self.learning.bias.gradient(y - value, threshold)
        if self.config.norm:
            difference = products[-1] - products[-1].mean(-1, keepdim=True)
            deviation = (difference.square().mean(-1, keepdim=True) + NORM_EPSILON).sqrt()
            unit, gradient = difference / deviation, gradient * self.norm_scale.to(gradient.dtype)
            along = (gradient * unit).mean(-1, keepdim=True)
            gradient = (gradient - gradient.mean(-1, keepdim=True) - unit * along) / deviation
        slope = silu_slope if self.learning.activation == "silu" else gelu_slope
        deltas = [gradient]
        for weight, product in zip(weights[:0:-1], products[-2::-1], strict=True):
            deltas.insert(0, _multiply(deltas[0], weight.mT) * slope(product))
        return inputs, deltas


def _multiply(
    x: Float[Tensor, "*heads _In"], weight: Float[Tensor, "*heads _In _Out"]
) -> Float[Tensor, "*heads _Out"]:
    """Return the product of one vector per head with the head's matrix."""
    return (x[..., None, :] @ weight)[..., 0, :]


def _raise_norm(layer: Float[Tensor, "*heads _In _Out"], q: float) -> Float[Tensor, "*heads _In _Out"]:
    """Return matrices whose q-norm is at least `_LEAST_NORM`. Zeros stay zeros."""
    powers = (layer / _LEAST_NORM).abs().pow(q).sum((-1, -2), keepdim=True)
    is_small = (powers < 1) & (powers > 0)
    return layer * torch.where(is_small, torch.where(is_small, powers, 1).pow(-1 / q), 1)


def _pack(layers: list[Tensor]) -> Float[Tensor, "*heads weights"]:
    """Return the weights of all layers in one dimension."""
    return torch.cat([layer.flatten(-2) for layer in layers], dim=-1)

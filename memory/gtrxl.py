"""Gated Transformer-XL (Parisotto et al. 2019, arXiv 1910.06764, section 3).

One deviation: in the paper, a step attends to the whole previous segment and to the earlier steps of its own
segment. Its context length therefore depends on the segment boundaries. Here every step attends to the last
`window` inputs of each layer, so outputs do not depend on the segment boundaries. Through all layers, the
context is num_layers * window steps long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from scrubjay.memory.contract.base import Memory, MemoryConfig, Read, Recall, State
from scrubjay.memory.contract.clock import Clock, shift_window
from scrubjay.memory.contract.stepper import Stepper, load_fast_path
from scrubjay.memory.parts.chunks import last_steps
from scrubjay.memory.parts.gate import Gate
from scrubjay.memory.parts.window import WindowAttention, WindowOptions, resolve_heads


@dataclass(frozen=True)
class GTrXLConfig(WindowOptions, MemoryConfig):
    """Sizes of `GTrXL`. Raises ValueError on an invalid size."""

    paper_values = (
        "in the paper, the context of a step depends on the borders of segments, which law 1 forbids"
    )

    num_layers: int = 2
    """Number of layers, each with its own window."""
    num_heads: int | None = None
    """Attention heads. The number must divide `dim`. Default: the largest divisor of `dim` up to 4."""
    window: int = 32
    """Number of earlier steps to which a step attends in each layer."""
    feed_forward_ratio: int = 2
    """Hidden width of the feed-forward layer, in units of `dim`."""
    gate_bias: float = 2.0
    """Initial bias of the gates. With a larger bias, a new layer is closer to the identity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options()
        resolve_heads(self.dim, self.num_heads)
        self.check_positive("num_layers", "window", "feed_forward_ratio")
        if not math.isfinite(self.gate_bias):
            raise ValueError(f"gate_bias={self.gate_bias}: must be finite")

    def build(self) -> GTrXL:
        """Return a newly initialized GTrXL."""
        return GTrXL(self)


class GTrXL(Memory):
    """Transformer layers with gates in place of residual connections.

    The state holds the last inputs of every layer's attention. Without a convolution, these are the `window`
    inputs that a step reads. A convolution of n steps needs n - 1 earlier inputs in addition, from which it
    computes the first keys and values of the window.
    """

    def __init__(self, config: GTrXLConfig) -> None:
        super().__init__(config)
        self.window = config.window
        layers = nn.ModuleList(GTrXLLayer(config) for _ in range(config.num_layers))
        self.layers = cast("list[GTrXLLayer]", layers)
        self.before = self.layers[0].attention.before

    def initial_state(self, batch_size: int) -> State:
        """Return an empty window, `[batch, layers, before, dim]`, and an episode age of 0 steps per row."""
        shape = (batch_size, len(self.layers), self.before, self.dim)
        return {
            "recent": torch.zeros(shape, dtype=self.state_dtype, device=self.device),
            "age": torch.zeros(batch_size, dtype=torch.int64, device=self.device),
        }

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one step of every row."""
        recent, age = state["recent"], state["age"]
        normalized = []
        for index, layer in enumerate(self.layers):
            normalized.append(layer.attention_norm(x))
            x = layer.combine(x, layer.attention.step(normalized[-1], recent[:, index], age))
        newest = torch.stack(normalized, dim=1)[:, :, None].to(recent.dtype)
        return x, {"recent": torch.cat([recent[:, :, 1:], newest], dim=2), "age": age + 1}

    @torch.no_grad()
    def recall(self, x: Tensor, state: State) -> Recall:
        """Return the attention weights of one step over the window of each layer."""
        recent, age = state["recent"], state["age"]
        steps, reads = last_steps(age, self.window), {}
        for index, layer in enumerate(self.layers):
            inputs = layer.attention_norm(x), recent[:, index], age
            reads[f"window, layer {index}"] = Read.from_weights(
                steps, layer.attention.step_weights(*inputs).mean(1)
            )
            x = layer.combine(x, layer.attention.step(*inputs))
        return Recall(reads, {})

    def stepper(self, state: State) -> Stepper:
        """Return a `GTrXLStepper` if this memory and `state` support one, and the default stepper otherwise.

        A memory with a convolution gets the default stepper.
        """
        if not self.layers[0].attention.is_foldable or not self.can_use_stepper(GTrXL, state):
            return super().stepper(state)
        return load_fast_path("gtrxl stepper")(self.layers, state)

    def segment(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Process a segment of every row in one pass."""
        clock = Clock.from_starts(state["age"], start)
        windows = []
        attention = self.layers[0].attention
        blocks = (
            attention.build_blocks(clock) if attention.supports_custom_backward(x, state["recent"]) else None
        )
        for layer, recent in zip(self.layers, state["recent"].unbind(1), strict=True):
            normalized = layer.attention_norm(x)
            windows.append(shift_window(recent, normalized, clock))
            x = layer.combine(x, layer.attention(normalized, recent, clock, blocks))
        return x, {"recent": torch.stack(windows, dim=1), "age": clock.age_after}


class GTrXLLayer(nn.Module):
    """Attention and a feed-forward layer, each after a layer norm and before a gate (equations 7-9)."""

    def __init__(self, config: GTrXLConfig) -> None:
        super().__init__()
        dim = config.dim
        hidden = config.feed_forward_ratio * dim
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, resolve_heads(dim, config.num_heads), config.window, config)
        self.attention_gate = Gate(dim, config.gate_bias)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )
        self.feed_forward_gate = Gate(dim, config.gate_bias)

    def combine(
        self, x: Float[Tensor, "... dim"], read: Float[Tensor, "... dim"]
    ) -> Float[Tensor, "... dim"]:
        """Return the layer's output from its input and its attention output."""
        x = self.attention_gate(x, F.relu(read))
        return self.feed_forward_gate(x, F.relu(self.feed_forward(x)))

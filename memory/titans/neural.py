"""Neural memory of Titans as a layer: projections, gates, and weights that learn at test time.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), sections 3 and 4.4. The learning rule is
`kernels.neural_memory`. This module makes the following choices where the paper leaves them open:

- Each head has a gate for the step size, one for momentum and one for forgetting. All three are functions of
  the token.
- The step size is `max_step * sigmoid(.) * (1 - momentum) / chunk_size`. All gradients of a chunk are taken
  at one set of weights, the anchor. With this step size, the tokens of a chunk together take one gradient
  step of size at most 1. In addition, `kernels.neural_memory` clips the steps of deeper networks.
- Momentum is at most `chunk_size / (chunk_size + 1)`. After a chunk, momentum moves the weights further along
  the chunk's step. With this bound, these movements add up to at most one more step of size 1.
  Without it, a memory diverges if high momentum continues a large step that was taken at low momentum. With
  both bounds, weights stayed bounded in every stream that we tried.
- `bound_steps=False` removes the factor `1 - momentum`, the bound of momentum and the clip. The memory then
  follows equations 13 and 14 as printed, with plain sigmoid gates. The paper leaves the scale of the step
  size open. High momentum repeats a step many times, so the default of `max_step` is 0.1 instead of 1. With
  larger values than `max_step` accepts, memories diverged within 512 steps. Training may still increase gates
  or initial weights until a memory diverges.
- Weights decay towards the learned initial weights, initially by 0.01% to 1% per step. The last layer is
  initialized to zero, so a read returns only written content.
- With `follow_paper`, `memory/titans/paper.py` replaces this memory: weights decay to zero.
- Only attention has the persistent tokens of section 3.3. If they were written to a memory before its first
  step, they would only change the initial weights, which are learned anyway.
- Keys, queries and values pass a causal convolution over `convolution` steps and SiLU. Keys and queries are
  then divided by their length. A read passes an RMS norm and an input gate before the output projection.
- A step reads before it writes, which suits agents. With `read_before_write=False`, it reads after it writes,
  as in the paper.
- `bptt_chunks` limits the gradient of the outer loss through the weights. Without a limit, the gradient flows
  through the whole segment. With a limit, it stops at every multiple of `bptt_chunks` chunks of an episode.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import Gates, Learning, NeuralState, neural_memory, neural_memory_step, neural_recall
from scrubjay.memory.contract.base import MemoryConfig, State
from scrubjay.memory.contract.clock import shift_window
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.parts.layers import normalize_vectors
from scrubjay.memory.parts.window import count_heads
from scrubjay.memory.titans.heads import Convolution, apply_norm, compute_heads, split_heads

# Outputs in the first steps of an episode are small; normalization must not amplify their rounding errors.
_READ_EPSILON = 1e-4
_UNBOUNDED_STEP = 0.1
"""Default sum of a chunk's step sizes without bounds."""


@dataclass(frozen=True)
class NeuralMemoryConfig(MemoryConfig):
    """Configuration of `NeuralMemory`. Raises ValueError on an invalid value."""

    chunk_size: int = 16
    """Steps per chunk. All gradients of a chunk are taken at the weights at the start of the chunk. The value
    1 gives the exact online rule."""
    depth: int = 1
    """Number of layers of a head's network. With 1, the network is a matrix, which is cheaper. A matrix also
    learned faster at the sizes tried so far."""
    hidden_ratio: int = 2
    """Width of the hidden layers of a head's network, in units of the head's width."""
    num_heads: int | None = None
    """Number of heads, each with one network. Default: the smallest number whose heads are 8 to 64
    wide; 1 if there is none."""
    max_step: float | None = None
    """Upper bound of the sum of a chunk's step sizes. Default: 1, also the largest value. Without
    `bound_steps`, the default is 0.1, and the largest value is 0.5 for a matrix and 0.2 for deeper networks
    or with `norm`."""
    convolution: int = 4
    """Number of steps in the causal convolution of keys, queries and values. With 1, a step uses only its
    own input."""
    output_gate: bool = True
    """Multiply the output by a gate that is a function of the input."""
    residual: bool = False
    """Add the input of a head's network to its output."""
    norm: bool = False
    """Standardize the output of a head's network."""
    read_before_write: bool = True
    """Read the memory before (True) or after (False) the write of the same step."""
    bptt_chunks: int | None = None
    """Number of chunks through which the gradient of the outer loss flows; None for the whole segment."""
    bound_steps: bool = True
    """Bound step sizes and momentum against divergence. False uses the equations of the paper as printed,
    which need a smaller `max_step`."""
    follow_paper: bool = False
    """Use the rule of the paper as printed, step by step: weights decay to zero, and there are no chunks or
    bounds. Needs `chunk_size=1` and `bound_steps=False`. Segments are slower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.follow_paper and (self.chunk_size != 1 or self.bound_steps):
            raise ValueError(
                f"follow_paper with chunk_size={self.chunk_size}, bound_steps={self.bound_steps}: needs "
                "chunk_size=1 and bound_steps=False"
            )
        for name in ("chunk_size", "depth", "hidden_ratio", "convolution"):
            if getattr(self, name) < 1 or getattr(self, name) % 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be an integer of at least 1")
        largest, condition = 1.0, ""
        if not self.bound_steps:
            is_matrix = self.depth == 1 and not self.norm
            largest, condition = 0.5 if is_matrix else 0.2, " with bound_steps=False"
            condition += "" if is_matrix else " and depth above 1 or norm"
        if self.max_step is not None and not 0 < self.max_step <= largest:
            raise ValueError(
                f"max_step={self.max_step}: must be above 0 and at most {largest:g}{condition}, because "
                "larger steps overshoot"
            )
        if self.bptt_chunks is not None and self.bptt_chunks < 1:
            raise ValueError(
                f"bptt_chunks={self.bptt_chunks}: must be at least 1, or None for the whole segment"
            )
        count_heads(self.dim, self.num_heads)

    @property
    def max_token_step(self) -> float:
        """Upper bound of the step size of one token."""
        default = 1.0 if self.bound_steps else _UNBOUNDED_STEP
        return (default if self.max_step is None else self.max_step) / self.chunk_size

    @property
    def heads(self) -> int:
        """Number of heads per layer. Each head has one network."""
        return count_heads(self.dim, self.num_heads)

    @property
    def layer_widths(self) -> list[tuple[int, int]]:
        """Input and output widths of the layers of a head's network."""
        width = self.dim // self.heads
        widths = [width, *[self.hidden_ratio * width] * (self.depth - 1), width]
        return list(itertools.pairwise(widths))

    @property
    def learning(self) -> Learning:
        """Learning rule: loss of the networks, and map from accumulated gradient steps to weights."""
        return Learning()

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates. A gate has one value per head and token."""
        return "step", "momentum", "forgetting"

    @property
    def gate_rank(self) -> int:
        """Rank of the map to gates with one value per channel; 0 for gates with one value per head."""
        return 0

    def build_initial_weights(self) -> list[Float[Tensor, "heads _In _Out"]]:
        """Return the untrained initial weights of the layers of a head's network. The last layer is zero."""
        *layers, last = (torch.randn(self.heads, a, b) * a**-0.5 for a, b in self.layer_widths)
        return [*layers, torch.zeros_like(last)]


class NeuralMemory(nn.Module):
    """Memory with one network per batch row and head, which learns at test time.

    A step writes its input into the weights of the network, and reads the network's output for a query.

    State: `delta`, `momentum` and `anchor` are `[batch, heads, weights]`. `delta` is the change of the
    weights from the learned initial weights. `momentum` is the momentum of this change, if the memory has
    momentum. `anchor` is the value of `delta` at the start of the chunk. `tail` `[batch, convolution - 1, 3
    dim]` holds the last inputs of the convolution.
    """

    def __init__(self, config: NeuralMemoryConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.learning, self.gate_names = config.learning, config.gates
        self.chunk_size, self.heads, self.width = config.chunk_size, config.heads, dim // config.heads
        self.project_in = nn.Linear(dim, 3 * dim, bias=False)
        if config.convolution > 1:
            # Initially almost only the present input: a query elsewhere would not match a key that mixes
            # steps.
            taps = torch.randn(config.convolution, 3 * dim) * 0.1
            taps[-1] = 1.0
            self.convolution = nn.Parameter(taps)
        self.gates = nn.Linear(dim, len(self.gate_names) * self.heads)
        self.weights = nn.ParameterList(config.build_initial_weights())
        self.out_norm = nn.RMSNorm(self.width, eps=_READ_EPSILON)
        if config.output_gate:
            self.output_gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        with torch.no_grad():
            biases = self._by_name(self.gates.bias)
            biases["step"].zero_()
            biases["forgetting"].copy_(torch.logspace(-4, -2, self.heads + 2)[1:-1].logit())
            if "momentum" in biases:
                biases["momentum"].copy_(torch.linspace(0.5, 0.9, self.heads + 2)[1:-1].logit())
            if "threshold" in biases:
                # About the length of an error, so that some tokens exceed it and others do not.
                biases["threshold"].fill_(math.log(math.expm1(self.width**0.5)))

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return the initial state: zeros."""
        size = sum(a * b for a, b in self.config.layer_widths)
        names = [name for name in NeuralState._fields if name != "momentum" or name in self.gate_names]
        shapes = {name: (batch_size, self.heads, size) for name in names}
        if self.config.convolution > 1:
            shapes["tail"] = (batch_size, self.config.convolution - 1, 3 * self.config.dim)
        return {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, time: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, " batch"], State]:
        """Return the output and the surprise of one step, and the next state.

        `time` is the number of the step in its episode, from 0.
        """
        (query, key, value), after = self._project_step(x, state)
        logits = self.gates(x)
        y, surprise, new_state = neural_memory_step(
            query,
            key,
            value,
            self._gates(logits),
            list(self.weights),
            _to_neural_state(self.detach_at_boundary(state, time)),
            time % self.chunk_size == self.chunk_size - 1,
            threshold=self._threshold(logits),
            **self._options,
        )
        return self.finish(x, y), surprise.mean(-1), after | _from_neural_state(new_state, state)

    def _project_step(
        self, x: Float[Tensor, "batch dim"], state: State
    ) -> tuple[tuple[Tensor, Tensor, Tensor], State]:
        """Return query, key and value of every head, and the next state of the convolution."""
        projections, after = self.project_in(x), {}
        if self.config.convolution > 1:
            inputs = torch.cat([state["tail"], projections[:, None].to(state["tail"].dtype)], dim=1)
            projections = (inputs * self.convolution).sum(1)
            # A copy: a view would keep the oldest input alive.
            after["tail"] = inputs[:, 1:].clone()
        return split_heads(projections, self.heads), after

    def _project_segment(
        self, x: Float[Tensor, "batch time dim"], state: State, grid: ChunkGrid
    ) -> tuple[Float[Tensor, "batch time 3 heads width"], State]:
        """Return query, key and value of every head and step, and the next state of the convolution."""
        projections, after, convolution = self.project_in(x), {}, None
        if self.config.convolution > 1:
            tail = state["tail"]
            projections = projections.to(tail.dtype)
            after["tail"] = shift_window(tail, projections, grid.clock)
            convolution = Convolution(self.convolution, tail, grid.clock.step)
        return compute_heads(projections, self.heads, convolution), after

    def detach_at_boundary(self, state: State, time: Int[Tensor, " batch"]) -> State:
        """Return `state`, detached from the graph in rows whose age is a multiple of `bptt_chunks` chunks."""
        if not self.config.bptt_chunks:
            return state
        return detach_rows(state, time % (self.config.bptt_chunks * self.chunk_size) == 0)

    def segment(
        self,
        x: Float[Tensor, "batch time dim"],
        state: State,
        grid: ChunkGrid,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time"], State]:
        """Return the outputs and the surprises of all steps of a segment, and the next state."""
        heads, after = self._project_segment(x, state, grid)
        bptt_chunks = self.config.bptt_chunks
        y, surprise, new_state = self._learn(
            grid.to_grid(heads),
            grid.to_grid(self.gates(x)),
            _to_neural_state(state),
            grid.valid,
            grid.fresh,
            grid.boundaries(bptt_chunks) if bptt_chunks else None,
        )
        surprise = grid.from_grid(surprise.mean(-1, keepdim=True))[..., 0]
        return self.finish(x, grid.from_grid(y)), surprise, after | _from_neural_state(new_state, state)

    def learn(
        self,
        x: Float[Tensor, "batch chunk_size dim"],
        state: State,
        valid: Bool[Tensor, "batch chunk_size"] | None,
    ) -> tuple[Float[Tensor, "batch chunk_size heads width"], Float[Tensor, "batch chunk_size"], State]:
        """Return the network outputs and the surprises of one chunk, and the next state.

        Pass the network outputs to `finish`. The memory must not have a convolution.
        """
        heads = compute_heads(self.project_in(x), self.heads)
        y, surprise, new_state = self._learn(heads, self.gates(x), _to_neural_state(state), valid, None, None)
        return y, surprise.mean(-1), _from_neural_state(new_state, state)

    def normalize_queries(self, query: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch heads width"]:
        """Return queries for `recall`: `query` after SiLU, split into heads, of at most unit length."""
        return normalize_vectors(functional.silu(query).unflatten(-1, (self.heads, self.width)))

    def recall(
        self, queries: Float[Tensor, "batch time heads width"], state: State
    ) -> Float[Tensor, "batch time dim"]:
        """Return the memory's outputs for `queries`, with its weights at the start of the present chunk.

        The output gate is not applied. The memory does not change.
        """
        options = {name: self._options[name] for name in ("residual", "norm", "learning")}
        y = neural_recall(queries, list(self.weights), state["anchor"], **options)
        return self.out(apply_norm(self.out_norm, y).flatten(-2))

    def _learn(
        self, heads: Float[Tensor, "batch places 3 heads width"], logits, neural_state, valid, fresh, cut
    ) -> tuple[Tensor, Tensor, NeuralState]:
        query, key, value = heads.unbind(2)
        return neural_memory(
            query,
            key,
            value,
            self._gates(logits),
            list(self.weights),
            neural_state,
            valid=valid,
            fresh=fresh,
            cut=cut,
            threshold=self._threshold(logits),
            **self._options,
        )

    @property
    def _options(self) -> dict[str, Any]:
        config = self.config
        return {
            "chunk_size": config.chunk_size,
            "read_before_write": config.read_before_write,
            "residual": config.residual,
            "norm": config.norm,
            "clip": config.bound_steps,
            "learning": self.learning,
        }

    def _by_name(self, logits: Float[Tensor, "*batch gates_and_heads"]) -> dict[str, Tensor]:
        parts = logits.unflatten(-1, (len(self.gate_names), self.heads)).unbind(-2)
        return dict(zip(self.gate_names, parts, strict=True))

    def _gates(self, logits: Float[Tensor, "*batch gates_and_heads"]) -> Gates:
        gates = self._by_name(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        step, momentum = torch.sigmoid(gates["step"]), gates.get("momentum")
        log_retention = functional.logsigmoid(-gates["forgetting"])
        max_step = self.config.max_token_step
        if momentum is None:
            return Gates(max_step * step, torch.full_like(step, -torch.inf), log_retention)
        if not self.config.bound_steps:
            return Gates(max_step * step, functional.logsigmoid(momentum), log_retention)
        max_momentum = compute_max_momentum(self.chunk_size)
        return Gates(
            max_step * step * (1 - max_momentum * torch.sigmoid(momentum)),
            functional.logsigmoid(momentum) + math.log(max_momentum),
            log_retention,
        )

    def _threshold(self, logits: Float[Tensor, "*batch gates_and_heads"]) -> Tensor | None:
        if "threshold" not in self.gate_names:
            return None
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.softplus(self._by_name(logits)["threshold"])

    def finish(self, x: Tensor, y: Float[Tensor, "*batch heads width"]) -> Tensor:
        """Normalize, gate and project the network outputs `y`, and return the result.

        The output gate, if there is one, is a function of the inputs `x`.
        """
        y = apply_norm(self.out_norm, y).flatten(-2)
        if self.config.output_gate:
            y = y * functional.silu(self.output_gate(x))
        return self.out(y)


def detach_rows(state: State, rows: Bool[Tensor, " batch"]) -> State:
    """Return `state`, with the memory's weights detached from the graph in these rows."""
    where = rows[:, None, None]
    return state | {
        name: torch.where(where, state[name].detach(), state[name])
        for name in NeuralState._fields
        if name in state
    }


def compute_max_momentum(chunk_size: int) -> float:
    """Return the largest momentum p that a memory with bounded steps may have.

    Momentum p repeats a step with the factors p, p^2, p^3 and so on. For the largest p, the sum of these
    factors is `chunk_size`.
    """
    return chunk_size / (chunk_size + 1)


def _to_neural_state(state: State) -> NeuralState:
    momentum = state.get("momentum")
    default = torch.zeros_like(state["delta"]) if momentum is None else momentum
    return NeuralState(state["delta"], default, state["anchor"])


def _from_neural_state(neural_state: NeuralState, state: State) -> State:
    """Return the state entries of `neural_state`. Without momentum, there is no entry `momentum`."""
    return {name: part for name, part in neural_state._asdict().items() if name in state}

"""The neural memory of Titans as a layer: projections, gates and the learner that is read while it learns.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), sections 3 and 4.4; the learning itself is
`kernels.neural_memory`. What the paper leaves open is decided here:

- Gates are functions of the token, one of each per head. The step is `max_step * sigmoid(.) * (1 - momentum)
  / chunk_size`: the gradients of a chunk are taken at one anchor, so its tokens together make one step of
  gradient descent, of size 1 at most (the clip of `kernels.neural_memory` sees to networks of several
  layers). Momentum is `chunk_size / (chunk_size + 1)` at most, so that what a token leaves to be repeated
  behind its chunk is at most one more such step: without that bound a large step, taken where momentum is low
  and repeated where it is high, makes a memory diverge. With both, weights stayed bounded in every stream we
  tried.
  `bound_steps=False` is without these bounds and the clip, equations 13 and 14 as they are printed, with
  gates that are nothing but sigmoids: a memory may diverge then, the sooner the more steps a chunk has.
- Weights forget towards the learned ones, at first 0.01% to 1% a step. The last layer is born at zero: what
  is read is what was written. So the persistent tokens of section 3.3, written into every memory before its
  first step, are nothing but other learned weights, and only attention has them.
- Keys, queries and values pass a causal convolution over `convolution` steps, SiLU and, but for values, a
  division by their length. A read passes RMS normalisation and a gate of the input before the output
  projection.
- A read comes before the write of its own step, as agents want it, or after, as the paper has it.
- `bptt_chunks` says how far outer gradients flow back through the weights: through the whole segment, or to
  the last boundary of so many chunks, counted from the episode's start.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import Gates, Learning, NeuralState, neural_memory, neural_memory_step, neural_recall
from scrubjay.memory.contract.base import LATER, MemoryConfig, State
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.parts.recent import shift_window
from scrubjay.memory.parts.unit import unit
from scrubjay.memory.titans.heads import Convolution, heads_of, normalised, split_heads

_WIDEST_HEAD, _NARROWEST_HEAD = 64, 8
# What is read in the first steps of an episode is small, and its rounding must stay so.
_READ_EPSILON = 1e-4


@dataclass(frozen=True)
class NeuralMemoryConfig(MemoryConfig):
    """Sizes of `NeuralMemory`. Raises ValueError on one that cannot work."""

    chunk_size: int = 16
    """Steps whose gradients are taken at the same weights; 1 is the exact online rule."""
    depth: int = 1
    """Layers of a head's network; 1 is a matrix, cheaper, and at the sizes tried so far sooner of use than
    more."""
    hidden_ratio: int = 2
    """Width between the layers, in units of a head's."""
    num_heads: int | None = None
    """Networks, each learning its part of the width; by default as few as make heads of 8 to 64, else 1."""
    max_step: float = 1.0
    """Largest sum of a chunk's steps, above which equal tokens overshoot what they learn; without
    `bound_steps` largest step of a token."""
    convolution: int = 4
    """Steps that a key, query or value is made of, the present one included."""
    output_gate: bool = True
    """Whether the input gates what was read."""
    residual: bool = False
    """Whether a head's network adds its input to its output."""
    norm: bool = False
    """Whether a head's network standardises its output."""
    read_before_write: bool = True
    """Whether a step is read before it is learned."""
    bptt_chunks: int | None = None
    """Chunks through which outer gradients flow back, None for all of a segment."""
    bound_steps: bool = field(default=True, metadata=LATER)
    """Whether steps and momentum are bounded so that no memory diverges; else they are as printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chunk_size", "depth", "hidden_ratio", "convolution"):
            if getattr(self, name) < 1 or getattr(self, name) % 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be a whole number, at least 1")
        if not 0 < self.max_step <= 1:
            raise ValueError(
                f"max_step={self.max_step}: must be above 0, and at most 1 lest equal steps overshoot"
            )
        if self.bptt_chunks is not None and self.bptt_chunks < 1:
            raise ValueError(
                f"bptt_chunks={self.bptt_chunks}: must be at least 1, or None for the whole segment"
            )
        if self.num_heads is not None and (self.num_heads < 1 or self.dim % self.num_heads):
            raise ValueError(f"num_heads={self.num_heads} does not divide dim={self.dim}")

    @property
    def heads(self) -> int:
        """Networks of a layer."""
        if self.num_heads is not None:
            return self.num_heads
        widths = range(min(_WIDEST_HEAD, self.dim), _NARROWEST_HEAD - 1, -1)
        return next((self.dim // width for width in widths if self.dim % width == 0), 1)

    @property
    def layer_widths(self) -> list[tuple[int, int]]:
        """Widths (in, out) of the layers of a head's network."""
        width = self.dim // self.heads
        widths = [width, *[self.hidden_ratio * width] * (self.depth - 1), width]
        return list(itertools.pairwise(widths))

    @property
    def learning(self) -> Learning:
        """What a network minimises and its weights are."""
        return Learning()

    @property
    def gates(self) -> tuple[str, ...]:
        """What each token decides of each head."""
        return "step", "momentum", "forgetting"

    def newborn(self) -> list[Float[Tensor, "heads _In _Out"]]:
        """Return what the layers' weights are before any training: of the last none, which says nothing."""
        *layers, last = (torch.randn(self.heads, a, b) * a**-0.5 for a, b in self.layer_widths)
        return [*layers, torch.zeros_like(last)]


class NeuralMemory(nn.Module):
    """Writes every input into weights of its own row and returns what those recall of it.

    State: `delta`, `momentum` and `anchor` `[batch, heads, weights]`, what was learned on top of the learned
    weights, how it moves (where there is momentum), and where it stood at the chunk's start; `tail` `[batch,
    convolution - 1, 3 dim]`, the last inputs of the convolution.
    """

    def __init__(self, config: NeuralMemoryConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.learning, self.gate_names = config.learning, config.gates
        self.chunk_size, self.heads, self.width = config.chunk_size, config.heads, dim // config.heads
        self.project_in = nn.Linear(dim, 3 * dim, bias=False)
        if config.convolution > 1:
            # At first nearly the present input alone: a key that mixes steps is not met again by a query
            # elsewhere.
            taps = torch.randn(config.convolution, 3 * dim) * 0.1
            taps[-1] = 1.0
            self.convolution = nn.Parameter(taps)
        self.gates = nn.Linear(dim, len(self.gate_names) * self.heads)
        self.weights = nn.ParameterList(config.newborn())
        self.out_norm = nn.RMSNorm(self.width, eps=_READ_EPSILON)
        if config.output_gate:
            self.output_gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        with torch.no_grad():
            biases = self._by_name(self.gates.bias)
            biases["step"].zero_()
            _logit(torch.logspace(-4, -2, self.heads + 2)[1:-1], biases["forgetting"])
            if "momentum" in biases:
                _logit(torch.linspace(0.5, 0.9, self.heads + 2)[1:-1], biases["momentum"])
            if "threshold" in biases:
                # About as long as an error is: some tokens are beyond it, others are not.
                biases["threshold"].fill_(math.log(math.expm1(self.width**0.5)))

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return the state of a memory that has learned nothing."""
        size = sum(a * b for a, b in self.config.layer_widths)
        names = [name for name in NeuralState._fields if name != "momentum" or name in self.gate_names]
        shapes = {name: (batch_size, self.heads, size) for name in names}
        if self.config.convolution > 1:
            shapes["tail"] = (batch_size, self.config.convolution - 1, 3 * self.config.dim)
        return {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, time: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, " batch"], State]:
        """Return what one input recalls, its surprise, and the state after.

        `time` is its step in the episode.
        """
        projected = self.project_in(x)
        after: State = {}
        if self.config.convolution > 1:
            taken = torch.cat([state["tail"], projected[:, None].to(state["tail"].dtype)], dim=1)
            projected = (taken * self.convolution).sum(1)
            # A copy: a view would keep the oldest input alive.
            after["tail"] = taken[:, 1:].clone()
        query, key, value = split_heads(projected, self.heads)
        logits = self.gates(x)
        y, surprise, learned = neural_memory_step(
            query,
            key,
            value,
            self._gates(logits),
            list(self.weights),
            _learned(self.cut(state, time)),
            time % self.chunk_size == self.chunk_size - 1,
            threshold=self._threshold(logits),
            **self._options,
        )
        return self.finish(x, y), surprise.mean(-1), after | _kept(learned, state)

    def cut(self, state: State, time: Int[Tensor, " batch"]) -> State:
        """Return `state`, cut off from the graph in rows that stand at a boundary of `bptt_chunks`."""
        if not self.config.bptt_chunks:
            return state
        return cut_rows(state, time % (self.config.bptt_chunks * self.chunk_size) == 0)

    def segment(
        self,
        x: Float[Tensor, "batch time dim"],
        state: State,
        grid: ChunkGrid,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time"], State]:
        """Return what a segment recalls, its surprises, and the state after it."""
        projected = self.project_in(x)
        after: State = {}
        convolution = None
        if self.config.convolution > 1:
            tail = state["tail"]
            projected = projected.to(tail.dtype)
            after["tail"] = shift_window(tail, projected, grid.clock)
            convolution = Convolution(self.convolution, tail, grid.clock.step)
        every = self.config.bptt_chunks
        y, surprise, learned = self._learn(
            grid.lay(heads_of(projected, self.heads, convolution)),
            grid.lay(self.gates(x)),
            _learned(state),
            grid.valid,
            grid.fresh,
            grid.boundaries(every) if every else None,
        )
        surprise = grid.collect(surprise.mean(-1, keepdim=True))[..., 0]
        return self.finish(x, grid.collect(y)), surprise, after | _kept(learned, state)

    def learn(
        self,
        x: Float[Tensor, "batch chunk_size dim"],
        state: State,
        valid: Bool[Tensor, "batch chunk_size"] | None,
    ) -> tuple[Float[Tensor, "batch chunk_size heads width"], Float[Tensor, "batch chunk_size"], State]:
        """Return what one chunk reads, for `finish`, its surprises, and the state after.

        For a memory without a convolution.
        """
        heads = heads_of(self.project_in(x), self.heads)
        y, surprise, learned = self._learn(heads, self.gates(x), _learned(state), valid, None, None)
        return y, surprise.mean(-1), _kept(learned, state)

    def asked(self, query: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch heads width"]:
        """Return what `recall` is given of queries."""
        return unit(functional.silu(query).unflatten(-1, (self.heads, self.width)))

    def recall(
        self, asked: Float[Tensor, "batch time heads width"], state: State
    ) -> Float[Tensor, "batch time dim"]:
        """Return what queries recall of all that was learned before the present chunk, ungated.

        Nothing is learned.
        """
        options = {name: self._options[name] for name in ("residual", "norm", "learning")}
        y = neural_recall(asked, list(self.weights), state["anchor"], **options)
        return self.out(normalised(self.out_norm, y).flatten(-2))

    def _learn(
        self, heads: Float[Tensor, "batch places 3 heads width"], logits, learned, valid, fresh, cut
    ) -> tuple[Tensor, Tensor, NeuralState]:
        query, key, value = heads.unbind(2)
        return neural_memory(
            query,
            key,
            value,
            self._gates(logits),
            list(self.weights),
            learned,
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
        named = self._by_name(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        step, momentum = torch.sigmoid(named["step"]), named.get("momentum")
        log_retention = functional.logsigmoid(-named["forgetting"])
        bounded = self.config.bound_steps
        largest = self.config.max_step / self.chunk_size if bounded else self.config.max_step
        if momentum is None:
            return Gates(largest * step, torch.full_like(step, -torch.inf), log_retention)
        if not bounded:
            return Gates(largest * step, functional.logsigmoid(momentum), log_retention)
        most = most_momentum(self.chunk_size)
        return Gates(
            largest * step * (1 - most * torch.sigmoid(momentum)),
            functional.logsigmoid(momentum) + math.log(most),
            log_retention,
        )

    def _threshold(self, logits: Float[Tensor, "*batch gates_and_heads"]) -> Tensor | None:
        if "threshold" not in self.gate_names:
            return None
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.softplus(self._by_name(logits)["threshold"])

    def finish(self, x: Tensor, y: Float[Tensor, "*batch heads width"]) -> Tensor:
        """Return the outputs of what was read, gated by inputs."""
        y = normalised(self.out_norm, y).flatten(-2)
        if self.config.output_gate:
            y = y * functional.silu(self.output_gate(x))
        return self.out(y)


def cut_rows(state: State, rows: Bool[Tensor, " batch"]) -> State:
    """Return `state` with what was learned cut off from the graph in some rows."""
    where = rows[:, None, None]
    return state | {
        name: torch.where(where, state[name].detach(), state[name])
        for name in NeuralState._fields
        if name in state
    }


def most_momentum(chunk_size: int) -> float:
    """Return the momentum at which what a chunk's steps leave, summed up for ever, is one more chunk's."""
    return chunk_size / (chunk_size + 1)


def _learned(state: State) -> NeuralState:
    momentum = state.get("momentum")
    still = torch.zeros_like(state["delta"]) if momentum is None else momentum
    return NeuralState(state["delta"], still, state["anchor"])


def _kept(learned: NeuralState, state: State) -> State:
    """Return what a state keeps of what was learned: without momentum, the last step is no part of it."""
    return {name: part for name, part in learned._asdict().items() if name in state}


def _logit(probability: Tensor, out: Tensor) -> None:
    out.copy_(torch.logit(probability))

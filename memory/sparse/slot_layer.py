"""Layers of `ELMUR`: attention to slots, and the rewriting of a slot at the end of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.parts.layers import feed_forward
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.sparse.local_chunk import OwnChunkAttention, attend_own_chunk, projections

_BUCKETS = 32  # number of distance buckets, at powers of two
_INITIAL_STD = 0.02


@dataclass(frozen=True)
class SlotConfig(MemoryConfig):
    """Configuration of layers with slots. Raises ValueError on an invalid value."""

    chunk_size: int = 16
    """Steps per chunk; one slot of each layer is rewritten at the end of a chunk."""
    num_slots: int = 16
    """Number of slots per layer."""
    blend: float = 0.5
    """Weight of the new content when a filled slot is rewritten, from 0 to 1."""
    num_layers: int = 1
    """Number of layers, each with its own slots."""
    num_heads: int | None = None
    """Attention heads; by default the largest divisor of `dim` up to 4."""
    follow_paper: bool = False
    """Read and write slots as in the authors' code (see the table above). Then law 7 does not apply."""
    max_distance: int = 1024
    """Number of distances with a learned bias, with `follow_paper`; greater distances share the last bias."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("chunk_size", "num_slots", "num_layers", "max_distance")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend={self.blend}: must be from 0 to 1")
        if self.follow_paper and not self.blend:
            raise ValueError("blend=0 with follow_paper: slots would never change")
        resolve_heads(self.dim, self.num_heads)


class Slots(NamedTuple):
    """Contents of slots, and the episode step at which each slot was last written; negative if empty."""

    content: Float[Tensor, "batch slots dim"]
    write_steps: Int[Tensor, "batch slots"]


class SlotLayer(OwnChunkAttention):
    """Layer that attends to the query's own chunk and to slots, and rewrites a slot at the end of a chunk."""

    edges: Tensor

    def __init__(self, config: SlotConfig) -> None:
        super().__init__(config.dim, config.num_heads, config.chunk_size)
        dim = config.dim
        self.blend, self.num_slots = config.blend, config.num_slots
        self.read_norm, self.slot_norm, self.step_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.read_query, self.read_key, self.read_value, self.read_out = projections(dim)
        self.read_bias = nn.Parameter(torch.zeros(self.heads, _BUCKETS))
        self.feed_forward = feed_forward(dim, 2 * dim)
        self.asker = nn.Parameter(torch.randn(dim))
        self.write_norm = nn.LayerNorm(dim)
        self.write_query, self.write_key, self.write_value, self.write_out = projections(dim)
        self.write_bias = nn.Parameter(torch.zeros(self.heads, config.chunk_size))
        self.write_feed_forward = feed_forward(dim, 2 * dim)
        self.written_norm = nn.LayerNorm(dim)
        self.register_buffer("edges", 2 ** torch.arange(1, _BUCKETS), persistent=False)

    def attend(
        self, x: Tensor, query: Tensor, keys: Tensor, values: Tensor, place: Tensor
    ) -> Float[Tensor, "batch time dim"]:
        """Return steps `x` plus the attention output over their own chunks."""
        read, _ = attend_own_chunk(query, keys, values, place, self.chunk_size)
        return x + self.out(read.flatten(2).to(self.out.weight.dtype))

    def read(
        self,
        x: Float[Tensor, "batch time dim"],
        time: Int[Tensor, "batch time"],
        slots: Slots,
        readable: Bool[Tensor, "batch time slots"] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """Return the attention output of inputs over filled slots. A mask `readable` restricts the slots."""
        slots = self.normalize_slots(slots)
        value = self._heads(self.read_value(slots.content))
        weights = self.weigh(x, time, slots, readable).to(value.dtype)
        return self.read_out((weights @ value).transpose(1, 2).flatten(2))

    def normalize_slots(self, slots: Slots) -> Slots:
        """Return the slots with normalized contents."""
        return Slots(self.slot_norm(slots.content.to(self.read_out.weight.dtype)), slots.write_steps)

    def weigh(
        self,
        x: Float[Tensor, "batch time dim"],
        time: Int[Tensor, "batch time"],
        slots: Slots,
        readable: Bool[Tensor, "batch time slots"] | None = None,
    ) -> Float[Tensor, "batch heads time slots"]:
        """Return the attention weights that `read` uses. `slots` is the output of `normalize_slots`."""
        query = self._heads(self.read_query(self.read_norm(x)))
        key = self._heads(self.read_key(slots.content))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        distance = time[:, :, None] - slots.write_steps[:, None]
        bucket = torch.bucketize(distance.clamp(min=0), self.edges, right=True)
        # The backward pass of indexing would take three times as long.
        bias = self.read_bias.gather(1, bucket.flatten().expand(self.heads, -1))
        scores = scores + bias.unflatten(1, bucket.shape).transpose(0, 1).to(scores.dtype)
        mask = (slots.write_steps >= 0)[:, None]
        mask = mask if readable is None else mask & readable
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return softmax_or_zero(scores.masked_fill(~mask[:, None], float("-inf")))

    def finish(
        self, x: Tensor, time: Tensor, slots: Slots, readable: Bool[Tensor, "batch time slots"] | None = None
    ) -> Float[Tensor, "batch time dim"]:
        """Return the layer outputs of steps that have already attended to their own chunks."""
        x = x + self.read(x, time, slots, readable)
        return x + self.feed_forward(x)

    def rewrite_slot(
        self,
        slots: Slots,
        steps: Float[Tensor, "batch chunk_size dim"],
        chunk: Int[Tensor, " batch"],
        where: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "batch slots dim"]:
        """Return the slots after the end of a chunk. One slot is rewritten in rows where `where` is True."""
        is_target = torch.arange(self.num_slots, device=chunk.device) == (chunk % self.num_slots)[:, None]
        old = (slots.content * is_target[..., None]).sum(dim=1)
        new = self._write(slots, old, is_target, steps, chunk)
        return torch.where((is_target & where[:, None])[..., None], new[:, None], slots.content)

    def _write(
        self, slots: Slots, old: Tensor, is_target: Tensor, steps: Tensor, chunk: Tensor
    ) -> Float[Tensor, "batch dim"]:
        """Return the new content of the target slot, whose content was `old`."""
        dtype = self.write_out.weight.dtype
        full = (chunk >= self.num_slots)[:, None]
        slot_input, steps = old.to(dtype), self.step_norm(steps.to(dtype))
        question = self.write_norm(slot_input + self.asker)
        new = slot_input + self._read_steps(question, steps, self.write_bias[:, None])
        new = self.written_norm(new + self.write_feed_forward(new)).to(old.dtype)
        return torch.where(full, self.blend * new + (1 - self.blend) * old, new)

    def _read_steps(
        self, question: Float[Tensor, "batch dim"], steps: Tensor, biases: Tensor
    ) -> Float[Tensor, "batch dim"]:
        """Return the attention output of the write over the steps of a chunk."""
        query = self._heads(self.write_query(question)[:, None])
        key, value = self._heads(self.write_key(steps)), self._heads(self.write_value(steps))
        scores = query @ key.mT * query.shape[-1] ** -0.5 + biases
        dtype = torch.promote_types(scores.dtype, torch.float32)
        read = torch.softmax(scores, dim=-1, dtype=dtype).to(value.dtype) @ value
        return self.write_out(read.transpose(1, 2).flatten(2)[:, 0])

    def _heads(self, x: Float[Tensor, "batch items dim"]) -> Float[Tensor, "batch heads items width"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    @classmethod
    def unused_parameters(cls, config: SlotConfig) -> list[str]:
        """Return the names of parameters that never get a gradient.

        A softmax over one slot or one step is always 1, so parameters that only affect its scores have no
        effect.
        """
        names = []
        if config.num_slots == 1:
            names += [
                "read_norm.weight",
                "read_norm.bias",
                "read_query.weight",
                "read_key.weight",
                "read_bias",
            ]
        if config.chunk_size == 1:
            names += ["query.weight", "key.weight", "write_query.weight", "write_key.weight", "write_bias"]
            names += ["write_norm.weight", "write_norm.bias", "asker"]
        return names


class PaperSlotLayer(SlotLayer):
    """Layer with slots as in the authors' code.

    Sublayers are normalized after the residual connection. Steps also read unwritten slots, whose initial
    content is random. Reading and writing share one learned bias for each signed distance in time. Every
    write blends the new content with the old one. The query of a write is the old content of the slot.
    """

    initial_slots: Tensor

    def __init__(self, config: SlotConfig) -> None:
        OwnChunkAttention.__init__(self, config.dim, config.num_heads, config.chunk_size)
        dim = config.dim
        self.blend, self.num_slots = config.blend, config.num_slots
        self.norm = nn.Identity()
        names = ("attention", "read", "feed_forward", "write", "write_feed_forward")
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim) for name in names})
        self.read_query, self.read_key, self.read_value, self.read_out = projections(dim)
        self.write_query, self.write_key, self.write_value, self.write_out = projections(dim)
        self.feed_forward, self.write_feed_forward = (feed_forward(dim, 2 * dim)[1:] for _ in range(2))
        self.max_distance = config.max_distance
        self.distance_bias = nn.Parameter(torch.randn(self.heads, 2 * config.max_distance - 1))
        self.register_buffer("initial_slots", _INITIAL_STD * torch.randn(config.num_slots, dim))

    def attend(
        self, x: Tensor, query: Tensor, keys: Tensor, values: Tensor, place: Tensor
    ) -> Float[Tensor, "batch time dim"]:
        """Return steps after attention to their own chunks."""
        return self.norms["attention"](super().attend(x, query, keys, values, place))

    def normalize_slots(self, slots: Slots) -> Slots:
        """Return the slots, in the dtype of the parameters."""
        return Slots(slots.content.to(self.read_out.weight.dtype), slots.write_steps)

    def weigh(
        self,
        x: Float[Tensor, "batch time dim"],
        time: Int[Tensor, "batch time"],
        slots: Slots,
        readable: Bool[Tensor, "batch time slots"] | None = None,
    ) -> Float[Tensor, "batch heads time slots"]:
        """Return the attention weights that `read` uses, for all slots or for those that are readable."""
        query, key = self._heads(self.read_query(x)), self._heads(self.read_key(slots.content))
        distance = time[:, :, None] - slots.write_steps[:, None]
        scores = query @ key.mT * query.shape[-1] ** -0.5 + self._biases(distance)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if readable is not None:
            scores = scores.masked_fill(~readable[:, None], float("-inf"))
        return torch.softmax(scores, dim=-1)

    def finish(
        self, x: Tensor, time: Tensor, slots: Slots, readable: Bool[Tensor, "batch time slots"] | None = None
    ) -> Float[Tensor, "batch time dim"]:
        """Return the layer outputs of steps that have already attended to their own chunks."""
        x = self.norms["read"](x + self.read(x, time, slots, readable))
        return self.norms["feed_forward"](x + self.feed_forward(x))

    def _write(
        self, slots: Slots, old: Tensor, is_target: Tensor, steps: Tensor, chunk: Tensor
    ) -> Float[Tensor, "batch dim"]:
        """Return the new content of the target slot, whose content was `old`."""
        write_step = (slots.write_steps * is_target).sum(dim=1)
        dtype = self.write_out.weight.dtype
        slot_input, steps = old.to(dtype), steps.to(dtype)
        time = chunk[:, None] * self.chunk_size + torch.arange(self.chunk_size, device=chunk.device)
        biases = self._biases((write_step[:, None] - time)[:, None])
        new = self.norms["write"](slot_input + self._read_steps(slot_input, steps, biases))
        new = self.norms["write_feed_forward"](new + self.write_feed_forward(new)).to(old.dtype)
        return self.blend * new + (1 - self.blend) * old

    def _biases(
        self, distance: Int[Tensor, "batch queries keys"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Return the learned biases of distances in time."""
        furthest = self.max_distance - 1
        index = distance.clamp(-furthest, furthest) + furthest
        # The backward pass of indexing would take longer.
        biases = self.distance_bias.gather(1, index.flatten().expand(self.heads, -1))
        return biases.unflatten(1, index.shape).transpose(0, 1)

    @classmethod
    def unused_parameters(cls, config: SlotConfig) -> list[str]:
        """Return the names of parameters that never get a gradient, as in `SlotLayer`."""
        names = []
        if config.num_slots == 1:
            names += ["read_query.weight", "read_key.weight"]
        if config.chunk_size == 1:
            names += ["query.weight", "key.weight", "write_query.weight", "write_key.weight"]
        return names + ["distance_bias"] * (config.num_slots == config.chunk_size == 1)

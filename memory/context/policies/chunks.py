"""Chunks: nothing is lost; every key head reads the chunks that suit the query, and the last tokens.

LongHeads (Lu et al. 2024, arXiv 2402.10685): the text is cut into chunks; a head reads the first, the latest
and those that score best, moved together to positions without gaps, so that a text may be much longer than
those of training. A chunk's score is that of the mean of its keys, unturned, as in MoBA (Lu et al. 2025,
arXiv 2502.13189); it needs none of the queries of the chunk, as LongHeads' does, and so serves a cache that
is fed token by token. What any key within a chunk's smallest and largest coordinates could score, as in Quest
(Tang et al. 2024, arXiv
2406.10774), is twice the memory and so loose a bound that it loses what is asked for. Chunks lie in memory or
on disk and are fetched; with the model stays one vector a chunk.

The queries of a prompt choose together in pieces of 64, as in InfLLM (Xiao et al. 2024, arXiv 2402.04617), a
token that is generated chooses alone: `kernels.choose_chunks` by the queries' votes. What is chosen is
fetched and read in one softmax with the new tokens, whose keys stand behind it in the same row of positions.
`kernels.attend_chosen` and `merge` read the same, to rounding, and take several times as long for a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels import choose_chunks
from scrubjay.kernels.select import best
from scrubjay.memory.context.parts.rotary import Spin
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.parts.store import ChunkStore, Place, Places
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, Held, Kept, LayerMemory, Step
from scrubjay.memory.context.policies.slots import attend_at_slots, place, to_slots, unturn

# Queries that choose together.
_PIECE = 64


@dataclass(frozen=True)
class ChunksPolicy(ContextPolicy):
    """Keep everything; read the first chunk, the last ones and the best between, `budget` tokens in all."""

    budget: int = 1024
    """Tokens read, beside those of the present call."""
    chunk_size: int = 8
    """Tokens in a chunk."""
    local_chunks: int | None = None
    """Chunks before the present one that are always read; by default half of all read."""
    store: Place = "cpu"
    """Where chunks lie: "model" is with the model, "cpu" in memory, "disk" in a temporary file."""
    folder: str | None = None
    """Where temporary files are made; by default where the system has them."""

    moves_positions: ClassVar[bool] = True
    any_cut: ClassVar[bool] = False
    can_crop: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.store not in ("model", "cpu", "disk"):
            raise ValueError(f"store={self.store!r}; choose 'model', 'cpu' or 'disk'")
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size}: must be at least 1")
        if self.local_chunks is not None and self.local_chunks < 0:
            raise ValueError(f"local_chunks={self.local_chunks}: must not be negative")
        if self.chosen < 1:
            local = 2 if self.local_chunks is None else self.local_chunks  # half of the least, rounded down
            raise ValueError(
                f"budget={self.budget}: must be at least {(local + 3) * self.chunk_size}, for the first "
                f"chunk, {local} local ones, the present one and one to choose, of {self.chunk_size} tokens "
                "each"
            )

    @property
    def local(self) -> int:
        """Chunks before the present one that are always read."""
        return self.budget // self.chunk_size // 2 if self.local_chunks is None else self.local_chunks

    @property
    def chosen(self) -> int:
        """Chunks that are chosen: all but the first, the local and the present."""
        return self.budget // self.chunk_size - self.local - 2

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return ChunksMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the means of full chunks, and of all chunks where they lie with the model."""
        full, begun = tokens // self.chunk_size, -(-tokens // self.chunk_size)
        mean = shape.layers * shape.batch * shape.key_heads * shape.key_width * shape.itemsize
        return full * mean + begun * self.chunk_size * shape.token_bytes * (self.store == "model")


class _Alone(NamedTuple):
    """What all layers do alike for a token that comes alone."""

    turn: Spin
    """What turns its query to its slot, and its key and the query that chooses to position 0."""
    count: int
    """Tokens before it."""
    closed: int
    """Chunks of which some are chosen, the first included; none where all are read."""
    far: Spin
    """What moves those chosen to their slots."""
    near: Spin
    """What moves those after them."""
    votes: Float[Tensor, "rows chunks"]
    """Room for what heads give the closed chunks; the first has all votes."""


class _Read(NamedTuple):
    """What the last tokens read."""

    chosen: Int[Tensor, "*rows chosen"]
    """Chunks by their numbers, the first among them, -1 for none."""
    full: Int[Tensor, " batch"] | int
    """Full chunks that there were: the last of them are read for being near."""


class ChunksMemory(LayerMemory):
    """State: `means` of the keys of each full chunk, turned to position 0; keys and values are in a store.

    There keys are turned to position 0, too, and lie with pairs of coordinates side by side. A token that
    comes alone reads the last chunks where they lie.
    """

    def __init__(self, policy: ChunksPolicy) -> None:
        super().__init__()
        self.policy = policy
        self._store: ChunkStore | None = None
        self._chunk_bytes = 0
        self._begun = 0  # chunks of the longest row, the one it is in included
        self._width = 0
        self._read: _Read | None = None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return what the new tokens read, one of them in a way of its own."""
        if step.length > 1 or step.padded or torch.is_grad_enabled():
            return super().attend(query, keys, values, step, scoring)
        return self._read_one(query, keys, values, step, scoring)

    def pieces(self, step: Step) -> list[int]:
        """Return pieces whose queries choose together."""
        whole, rest = divmod(step.length, _PIECE)
        return [_PIECE] * whole + [rest] * (rest > 0)

    def retrieve(self, query: Tensor, step: Step, scoring: Scoring) -> Held | None:
        """Return the first chunk, those chosen, and those up to the present, as they follow in the text."""
        self._read = None
        if self._store is None:
            return None
        full = step.once("full before", lambda: step.before // self.policy.chunk_size)
        present = step.once("present", lambda: self._present(full, step))
        chosen = self._choose(query, step, full, scoring)
        self._read = _Read(chosen, full)
        chunks = torch.cat([chosen, present.expand(-1, chosen.shape[1], -1)], dim=2).sort(dim=-1).values
        keys, values = self.load(chunks)
        # Heads and layers choose differently but as many, and without holes: slots are the same for all.
        valid = step.once("valid", lambda: self._valid(chunks[:, 0], step))
        run = step.once("run", lambda: None if step.padded else _run(valid[0]))
        return Held(keys, values, valid) if run is None else Held(keys[:, :, run], values[:, :, run], None)

    def _valid(self, chunks: Int[Tensor, "batch chunks"], step: Step) -> Bool[Tensor, "batch tokens"]:
        """Return which tokens of chunks there are.

        The same for all heads and layers, as full chunks are chosen among.
        """
        size = self.policy.chunk_size
        token = chunks[:, :, None] * size + torch.arange(size, device=chunks.device)
        return ((chunks[:, :, None] >= 0) & (token < step.before[:, None, None])).flatten(1)

    def _present(self, full: Int[Tensor, " batch"], step: Step) -> Int[Tensor, "batch 1 1"]:
        """Return the chunk that is not yet full, -1 where none is begun."""
        begun = step.before % self.policy.chunk_size > 0
        return torch.where(begun, full, -1)[:, None, None]

    def load(self, chosen: Int[Tensor, "batch key_heads chunks"]) -> tuple[Tensor, Tensor]:
        """Fetch chunks from where they lie; a negative one is any."""
        assert self._store is not None
        table = self._store.fetch(chosen.clamp(min=0).flatten(0, 1)).flatten(1, 2)
        table = table.unflatten(0, chosen.shape[:2])
        return table[..., : self._width], table[..., self._width :]

    def generate(
        self, query: Tensor, keys: Tensor, values: Tensor, held: Held | None, step: Step, scoring: Scoring
    ) -> Tensor:
        """Attend causally at slot positions.

        Args: those of `LayerMemory.generate`.
        """

        def slots() -> Tensor:
            if held is None:
                return step.time
            if held.valid is None:
                columns = held.keys.shape[2] + step.length
                return torch.arange(columns, device=keys.device).expand(len(keys), -1)
            old = held.valid.cumsum(dim=1)
            new = torch.where(step.time < 0, -1, old[:, -1:] + step.time - step.before[:, None])
            return torch.cat([torch.where(held.valid, old - 1, -1), new], dim=1)

        there = step.once("slots", slots)
        query, keys = place(query, there, step), unturn(keys, step)
        if held is not None:
            keys, values = torch.cat([held.keys, keys], dim=2), torch.cat([held.values, values], dim=2)
        keys = to_slots(keys, there, step)
        return attend_at_slots(query, keys, values, there, step, scoring)[0]

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Put new tokens into the store, and take the means of chunks that are full."""
        self._put(unturn(keys, step), values, step)
        self._take_means(step)

    def kept(self, count: Int[Tensor, " batch"]) -> Kept | None:
        """Return the values of all chunks, of those that the last token read, and of those fetched for it."""
        if self._store is None:
            return None
        size = self.policy.chunk_size
        values = self._store.run(0, self._begun * size)[..., self._width :]
        values = values.unflatten(0, (self._store.batch, self._store.heads))
        there = torch.arange(values.shape[2], device=values.device) < count.to(values.device)[:, None]
        values = values * there[:, None, :, None]
        if self._read is None:
            return Kept(values)
        chunk = torch.arange(self._begun, device=values.device)
        chosen = self._read.chosen.to(chunk.device)[..., None] == chunk
        chosen = chosen.any(dim=-2).view(*values.shape[:2], -1)
        near = torch.as_tensor(self._read.full, device=chunk.device).view(-1, 1, 1) - self.policy.local
        masks = chosen | (chunk >= near), chosen & (chunk > 0) & (chunk < near)
        of_tokens = (mask.repeat_interleave(size, dim=2)[..., None] for mask in masks)
        return Kept(values, *(values * mask for mask in of_tokens))

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Forget the last tokens."""
        self._read = None
        size, longest = self.policy.chunk_size, max(int(count.max()) - columns, 0)
        self._begun = -(-longest // size)
        self.state = {name: tensor[:, :, : longest // size] for name, tensor in self.state.items()}

    def reorder(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep the given rows, in their order, in the store as well."""
        super().reorder(rows)
        self._read = None
        if self._store is not None:
            self._chunk_bytes = self._chunk_bytes // self._store.batch * len(rows)
            self._store.reorder(rows)

    def saved(self) -> dict[str, Tensor]:
        """Return the state, and all that is in the store."""
        if self._store is None:
            return self.state
        table = self._store.run(0, self._begun * self.policy.chunk_size)
        table = table.unflatten(0, (self._store.batch, self._store.heads))
        saved = self.state | {"chunks": table}
        # Keys as the model lays them.
        saved = {name: self._relaid(tensor, "apart") for name, tensor in saved.items()}
        return saved | {"width": torch.tensor(self._width)}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take up what `saved` returned, in a new store."""
        if "chunks" in saved:
            self._width = int(saved["width"])
            table = self._relaid(saved["chunks"], "together")
            self._open(table, self._width)
            assert self._store is not None
            self._store.append(table, 0)
            self._begun = table.shape[2] // self.policy.chunk_size
        self.state = {"means": self._relaid(saved["means"], "together")} if "means" in saved else {}

    def _relaid(self, keys: Tensor, how: Literal["together", "apart"]) -> Tensor:
        """Return keys, and what lies behind them, with pairs laid otherwise."""
        assert self.layout is not None
        relay = self.layout.together if how == "together" else self.layout.apart
        return torch.cat([relay(keys[..., : self._width]), keys[..., self._width :]], dim=-1)

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes with the model, or those of the chunks in the store."""
        chunks = self._begun * self._chunk_bytes
        if place is not None:
            return chunks if place == self.policy.store else 0
        return super().nbytes() + chunks * (self.policy.store == "model")

    def _open(self, table: Tensor, width: int) -> None:
        self._width = width
        self._store = ChunkStore(self.policy.store, self.policy.folder, table, self.policy.chunk_size)
        self._chunk_bytes = table[:, :, 0].nbytes * self.policy.chunk_size

    def _put(self, keys: Tensor, values: Tensor, step: Step) -> None:
        """Put new tokens into the store, their keys at position 0."""
        table = torch.cat([keys, values], dim=-1).detach()
        if self._store is None:
            self._open(table, keys.shape[-1])
        assert self._store is not None
        if step.padded:
            self._store.write(table, step.once("places", lambda: Places.of(step.time)))
        else:
            self._store.append(table, step.once("bounds", lambda: _bounds(step))[0])
        self._begun = -(-step.once("bounds", lambda: _bounds(step))[1] // self.policy.chunk_size)

    def _take_means(self, step: Step) -> None:
        """Take the means of chunks that the step has filled; of a row with fewer they are never looked at."""
        assert self._store is not None
        size = self.policy.chunk_size
        before, after = step.once("bounds", lambda: _bounds(step))
        first, full = before // size, after // size
        if first == full or (step.padded and not step.once("filled", lambda: _fills(step, size))):
            return
        keys = self._store.run(first * size, full * size)[..., : self._width]
        keys = keys.unflatten(0, (self._store.batch, self._store.heads))
        new = keys.unflatten(2, (-1, size)).mean(dim=3)
        if "means" in self.state:
            new = torch.cat([self.state["means"][:, :, :first], new], dim=2)
        self.state["means"] = new

    def _read_one(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Put one token into the store, and return what it reads there."""
        batch, heads, _, width = query.shape
        groups = keys.shape[1]
        alone = step.once(f"alone {heads} {groups}", lambda: self._alone(batch, heads, groups, step))
        turned = alone.turn.together(torch.cat([query, keys, query], dim=1))
        at_slot, key, at_origin = turned.split_with_sizes([heads, groups, heads], dim=1)
        self._put(key, values, step)
        at_slot, at_origin = (x.reshape(batch * groups, -1, width) for x in (at_slot, at_origin))
        far, near = self._reach(at_origin, alone, scoring)
        products = torch.bmm(at_slot, alone.near(near[None, ..., :width])[0].mT)
        if far is not None:
            behind = torch.bmm(at_slot, alone.far(far[None, ..., :width])[0].mT)
            products = torch.cat([behind, products], dim=2)
        by_head = products.view(batch, groups, -1, 1, products.shape[2])
        weights = scoring.weights(by_head).to(values.dtype).view_as(products)
        if far is None:
            out = torch.bmm(weights, near[..., width:])
        else:
            begin = far.shape[1]
            out = torch.bmm(weights[:, :, begin:], near[..., width:])
            out = torch.baddbmm(out, weights[:, :, :begin], far[..., width:])
        self._take_means(step)
        return out.view(batch, heads, 1, -1)

    def _alone(self, batch: int, heads: int, groups: int, step: Step) -> _Alone:
        policy, device = self.policy, step.time.device
        count = step.once("bounds", lambda: _bounds(step))[0]
        full, read = count // policy.chunk_size, 1 + policy.chosen
        closed = full - policy.local if full > read + policy.local else 0
        begin = read * policy.chunk_size if closed else 0
        slot = begin + count - closed * policy.chunk_size
        slots = step.rotary.in_order(slot + 1, device)
        wanted = torch.tensor([[slot, 0]], device=device)
        return _Alone(
            step.rotary.spin(step.given, wanted).by_heads([heads, groups + heads]),
            count,
            closed,
            slots.part(0, begin),
            slots.part(begin, slot + 1),
            torch.full((batch * groups, closed), torch.inf, device=device),
        )

    def _reach(
        self, at_origin: Float[Tensor, "rows shared width"], alone: _Alone, scoring: Scoring
    ) -> tuple[Tensor | None, Tensor]:
        """Return what a token reads of the store: what is fetched, None where all is read, and the rest.

        Keys and values side by side, "rows tokens width", of which the rest is read where it lies.
        """
        assert self._store is not None
        near = self._store.run(alone.closed * self.policy.chunk_size, alone.count + 1)
        self._read = None
        if not alone.closed:
            return None, near
        chosen = self._choose_alone(at_origin, alone, scoring)
        self._read = _Read(chosen, alone.closed + self.policy.local)
        return self._store.fetch(chosen).flatten(1, 2), near

    def _choose_alone(
        self, at_origin: Float[Tensor, "rows shared width"], alone: _Alone, scoring: Scoring
    ) -> Int[Tensor, "rows chosen"]:
        """Return the first chunk and the best of those closed, in their order.

        They are what `choose_chunks` returns where the first is kept; what else it looks at takes as long as
        all of this.
        """
        means = self.state["means"].flatten(0, 1)[:, 1 : alone.closed]
        scores = scoring.of(torch.bmm(at_origin, means.mT)).float()
        torch.sum(torch.softmax(scores, dim=-1), dim=1, out=alone.votes[:, 1:])
        return best(alone.votes, 1 + self.policy.chosen).sort(dim=-1).values

    def _choose(
        self,
        query: Float[Tensor, "batch heads length width"],
        step: Step,
        full: Int[Tensor, " batch"],
        scoring: Scoring,
    ) -> Int[Tensor, "batch key_heads chosen"]:
        """Return the first chunk, the last full ones and the best between; -1 where there are fewer."""
        assert self._store is not None
        policy, groups = self.policy, self._store.heads
        longest = step.once("longest", lambda: int(full.max()))
        top_k = 1 + policy.local + policy.chosen
        # Whatever the votes, where all are read.
        votes = query.new_zeros(len(query), groups, longest)
        if longest > top_k:
            votes = self._votes(query, step, full, scoring)
        return choose_chunks(
            full[:, None],
            scores=votes[:, None],
            top_k=top_k,
            num_sink_chunks=1,
            num_local_chunks=policy.local,
        ).chunks[:, 0]

    def _votes(
        self,
        query: Float[Tensor, "batch heads length width"],
        step: Step,
        full: Int[Tensor, " batch"],
        scoring: Scoring,
    ) -> Float[Tensor, "batch key_heads chunks"]:
        """Return what the queries of each key head together give each full chunk.

        A query has one vote, to spread over the chunks that are not read anyway.
        """
        means = self.state["means"]
        query = unturn(query, step).detach().unflatten(1, (means.shape[1], -1)).flatten(2, 3)
        if not step.padded:
            end = step.once("end", lambda: int(full[0]) - self.policy.local)
            scores = scoring.of(query @ means[:, :, 1:end].mT).float()
            votes = torch.softmax(scores, dim=-1).sum(dim=2)
            return functional.pad(votes, (1, means.shape[2] - end))
        closed = step.once("closed", lambda: self._closed(full, means.shape[2]))
        scores = scoring.of(query @ means.mT).float().masked_fill(closed[:, None, None], float("-inf"))
        votes = torch.softmax(scores, dim=-1).nan_to_num(0).unflatten(2, (-1, step.length))
        return (votes * (step.time >= 0)[:, None, None, :, None]).sum(dim=(2, 3))

    def _closed(self, full: Int[Tensor, " batch"], chunks: int) -> Bool[Tensor, "batch chunks"]:
        """Return which chunks are read anyway, or are not full."""
        chunk = torch.arange(chunks, device=full.device)
        return (chunk == 0) | (chunk >= full[:, None] - self.policy.local)


def _bounds(step: Step) -> tuple[int, int]:
    """Return the tokens of the shortest row before a step, and of the longest after it."""
    if not step.padded:
        before = int(step.before[0])
        return before, before + step.length
    return int(step.before.min()), int(step.after.max())


def _fills(step: Step, size: int) -> bool:
    """Return whether a row has more full chunks after a step than before it."""
    return bool((step.after // size > step.before // size).any())


def _run(valid: Bool[Tensor, " tokens"]) -> slice | None:
    """Return where all that is valid lies, if nothing else lies between."""
    there = valid.nonzero().flatten()
    first, last = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)
    return slice(first, last) if last - first == len(there) else None

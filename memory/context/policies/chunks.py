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
`kernels.attend_chosen` and `merge` read the same, to rounding, and take five times as long for a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels import choose_chunks
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.parts.store import ChunkStore, Place, Places
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, Held, LayerMemory, Step
from scrubjay.memory.context.policies.slots import attend_at_slots, unturn

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
        if self.local < 0:
            raise ValueError(f"local_chunks={self.local}: must not be negative")
        if self.chosen < 1:
            raise ValueError(
                f"budget={self.budget}: must be at least {(self.local + 3) * self.chunk_size}, for the "
                "first chunk, "
                f"{self.local} local ones, the present one and one to choose, of {self.chunk_size} tokens "
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


class ChunksMemory(LayerMemory):
    """State: `means` of the keys of each full chunk, turned to position 0; keys and values are in a store."""

    def __init__(self, policy: ChunksPolicy) -> None:
        super().__init__()
        self.policy = policy
        self._store: ChunkStore | None = None
        self._chunk_bytes = 0
        self._begun = 0  # chunks of the longest row, the one it is in included
        self._width = 0

    def pieces(self, step: Step) -> list[int]:
        """Return pieces whose queries choose together."""
        whole, rest = divmod(step.length, _PIECE)
        return [_PIECE] * whole + [rest] * (rest > 0)

    def retrieve(self, query: Tensor, step: Step, scoring: Scoring) -> Held | None:
        """Return the first chunk, those chosen, and those up to the present, as they follow in the text."""
        if self._store is None:
            return None
        full = step.once("full before", lambda: step.before // self.policy.chunk_size)
        present = step.once("present", lambda: self._present(full, step))
        chosen = self._choose(query, step, full, scoring)
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
        table = self._store.fetch(chosen.clamp(min=0))
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

        keys = unturn(keys, step)
        if held is not None:
            keys, values = torch.cat([held.keys, keys], dim=2), torch.cat([held.values, values], dim=2)
        return attend_at_slots(query, keys, values, step.once("slots", slots), step, scoring)[0]

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Put new tokens into the store, and take the means of chunks that are full."""
        table = torch.cat([unturn(keys, step), values], dim=-1).detach()
        if self._store is None:
            self._open(table, keys.shape[-1])
        assert self._store is not None
        self._store.write(table, step.once("places", lambda: Places.of(step.time)))
        size = self.policy.chunk_size
        self._begun = step.once("begun", lambda: -(-int(step.after.max()) // size))
        if step.once("any full", lambda: bool((step.after // size > step.before // size).any())):
            first = step.once("first chunk", lambda: int(step.before.min()) // size)
            self._take_means(first, step.once("full", lambda: int(step.after.max()) // size))

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Forget the last tokens."""
        size, longest = self.policy.chunk_size, max(int(count.max()) - columns, 0)
        self._begun = -(-longest // size)
        self.state = {name: tensor[:, :, : longest // size] for name, tensor in self.state.items()}

    def reorder(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep the given rows, in their order, in the store as well."""
        super().reorder(rows)
        if self._store is not None:
            self._chunk_bytes = self._chunk_bytes // self._store.rows * len(rows)
            self._store.reorder(rows)

    def saved(self) -> dict[str, Tensor]:
        """Return the state, and all that is in the store."""
        if self._store is None:
            return self.state
        return self.state | {"chunks": self._store.all(self._begun), "width": torch.tensor(self._width)}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take up what `saved` returned, in a new store."""
        if "chunks" in saved:
            table = saved["chunks"]
            self._open(table, int(saved["width"]))
            assert self._store is not None
            self._store.write(table, Places.of(torch.arange(table.shape[2]).expand(len(table), -1)))
            self._begun = table.shape[2] // self.policy.chunk_size
        self.state = {"means": saved["means"]} if "means" in saved else {}

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

    def _take_means(self, first: int, full: int) -> None:
        """Take the means of chunks from `first` on, `full` in all.

        Of a row with fewer they are never looked at.
        """
        assert self._store is not None
        keys = self._store.all(full, first)[..., : self._width]
        new = keys.unflatten(2, (-1, self.policy.chunk_size)).mean(dim=3)
        if "means" in self.state:
            new = torch.cat([self.state["means"][:, :, :first], new], dim=2)
        self.state["means"] = new

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


def _run(valid: Bool[Tensor, " tokens"]) -> slice | None:
    """Return where all that is valid lies, if nothing else lies between."""
    there = valid.nonzero().flatten()
    first, last = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)
    return slice(first, last) if last - first == len(there) else None

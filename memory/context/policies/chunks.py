"""Chunk retrieval: keep all tokens; each key head reads the last tokens and the chunks with the best scores.

LongHeads (Lu et al. 2024, arXiv 2402.10685) splits the text into chunks. A head reads the first chunk, the
latest chunks and the best chunks. All of them get consecutive positions without gaps, so the text may be much
longer than the training texts. Each query scores a chunk by a summary of its unrotated keys (`chunk_search`).
Chunks that are offloaded to main memory or disk are loaded on demand. The model's device then stores only one
summary per chunk. `chunk_presets` has the settings of LongHeads, Quest and HiP.

Every 64 consecutive queries of a prompt select chunks together, as in InfLLM (Xiao et al. 2024, arXiv
2402.04617). Each generated token selects its own chunks. `kernels.choose_chunks` selects the chunks with the
most votes of the queries. One softmax covers the selected chunks and the new tokens, which get the positions
after the chunks. `kernels.attend_chosen` and `merge` would give equal results up to rounding, but would take
several times as long per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels import choose_chunks
from scrubjay.kernels.select import best
from scrubjay.memory.context.policies.base import (
    CacheShape,
    LayerMemory,
    PastKeyValues,
    RetainedValues,
    Step,
    check_minimums,
)
from scrubjay.memory.context.policies.budget import BudgetPolicy
from scrubjay.memory.context.policies.buffers import compact
from scrubjay.memory.context.policies.chunk_search import Search, Summary, expand_query, summarize, vote
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.rotary import PairedRotation
from scrubjay.memory.context.policies.slots import (
    attend_at_slots,
    contiguous_slice,
    rotate_new_to_slots,
    rotate_to_origin,
    rotate_to_slots,
)
from scrubjay.memory.context.policies.store import (
    ChunkStore,
    StoreLocation,
    TokenPlaces,
    compute_chunk_capacity,
)


@dataclass(frozen=True)
class ChunksPolicy(BudgetPolicy):
    """Keep all tokens; read the first chunk, the last chunks and the best chunks in between."""

    budget: int | None = None
    """Number of past tokens that a query reads, in addition to at most 64 new tokens of its call. Default:
    the model's window without these 64 tokens, at most 8,192."""
    chunk_size: int = 8
    """Tokens per chunk."""
    local_chunks: int | None = None
    """Number of chunks just before the current chunk, always read. Default: half the chunks in `budget`."""
    store: StoreLocation = "cpu"
    """Storage of chunks: "model" (the model's device), "cpu" (main memory) or "disk" (a temporary file)."""
    folder: str | None = None
    """Folder of the files if `store` is "disk". Default: the system's folder for temporary files."""
    summary: Summary = "mean"
    """Summary of a chunk's keys: "mean", "middle", "bounds" or "attention"."""
    search: Search = "flat"
    """Search for chunks: "flat" rates all of them, "tree" only some in each range of the text."""

    moves_positions: ClassVar[bool] = True
    split_invariant: ClassVar[bool] = False
    can_crop: ClassVar[bool] = True
    drops: ClassVar[bool] = False
    margin: ClassVar[int] = 64

    def __post_init__(self) -> None:
        for name, choices in (("store", StoreLocation), ("summary", Summary), ("search", Search)):
            if (value := getattr(self, name)) not in get_args(choices):
                raise ValueError(f"{name}={value!r}; choose from {', '.join(map(repr, get_args(choices)))}")
        check_minimums(self, chunk_size=1)
        if self.local_chunks is not None and self.local_chunks < 0:
            raise ValueError(f"local_chunks={self.local_chunks}: must not be negative")
        if self.num_selected < 1:
            local = 2 if self.local_chunks is None else self.local_chunks  # half of the least, rounded down
            raise ValueError(
                f"budget={self.num_tokens}: must be at least {(local + 3) * self.chunk_size}, for the first "
                f"chunk, {local} local chunks, the current chunk and one selected chunk, of "
                f"{self.chunk_size} tokens each"
            )

    @property
    def num_local(self) -> int:
        """Number of local chunks: the chunks just before the current chunk, which are always read."""
        return self.num_tokens // self.chunk_size // 2 if self.local_chunks is None else self.local_chunks

    @property
    def num_selected(self) -> int:
        """Number of chunks selected by score: all in `budget` except first, local and current chunks."""
        return self.num_tokens // self.chunk_size - self.num_local - 2

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return ChunksMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes on the device: a summary per full chunk, an index, and the chunks stored there.

        The storage of chunks includes unused capacity.
        """
        rows = shape.layers * shape.batch * shape.key_heads
        key_bytes = rows * shape.key_width * shape.itemsize
        summaries = tokens // self.chunk_size * key_bytes * (2 if self.summary == "bounds" else 1)
        queries = key_bytes if self.summary == "attention" else 0
        index = 8 * rows if tokens else 0
        chunks = (
            compute_chunk_capacity(-(-tokens // self.chunk_size))
            if self.store in ("model", shape.device)
            else 0
        )
        return summaries + index + chunks * self.chunk_size * (shape.token_bytes + queries)


class _SingleTokenPlan(NamedTuple):
    """Values shared by all layers for a call with a single token."""

    rotation: PairedRotation
    """Rotation of the query, the key and a copy of the query, joined along the head axis.

    The copy selects chunks. The key and the copy move to position 0. The query moves to its position among
    the tokens that it reads."""
    num_closed: int
    """Number of chunks to select from, the first included; 0 if all chunks are read."""
    far: PairedRotation
    """Rotation that moves the keys of selected chunks from position 0 to their positions in this call."""
    near: PairedRotation
    """Rotation that moves the keys of the last chunks from position 0 to their positions in this call."""
    votes: Float[Tensor, "rows chunks"]
    """Buffer for the votes of the heads. The first chunk has infinite votes, so it is always selected."""


class _LastRead(NamedTuple):
    """Result of the last selection of chunks."""

    chunks: Int[Tensor, "*rows selected"]
    """Indices of the selected chunks, the first chunk included, -1 for unused entries."""
    full: Int[Tensor, " batch"] | int
    """Number of full chunks when chunks were selected. The local chunks are the last of these."""


class ChunksMemory(LayerMemory):
    """Memory of one layer.

    State: `summaries` of the full chunks. Keys and values are in a `ChunkStore`, with the mean query of each
    key head if summaries need it. The stored keys and queries are rotated to position 0 and have interleaved
    pairs. If a call has only one token, this token reads the last chunks in the store without a copy.
    """

    longest_piece = ChunksPolicy.margin
    """Number of queries that select chunks together."""

    state_names = frozenset(("chunks", "width"))

    def __init__(self, policy: ChunksPolicy) -> None:
        super().__init__()
        self.policy = policy
        self._store: ChunkStore | None = None
        self._num_started = 0  # chunks of the longest row, the partial one included
        self._width = 0
        self._last_read: _LastRead | None = None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return the attention output of the new tokens; a single token has a faster path."""
        if step.length > 1 or step.padded or torch.is_grad_enabled():
            return super().attend(query, keys, values, step, scoring)
        return self._read_one(query, keys, values, step, scoring)

    def retrieve(self, query: Tensor, step: Step, scoring: Scoring) -> PastKeyValues | None:
        """Return the first, the selected, the local and the current chunks in the order of the text."""
        self._last_read = None
        if self._store is None:
            return None
        size = self.policy.chunk_size
        full = step.compute_once("full before", lambda: step.before // size)
        # Each row's last chunk if it is only partly filled, else -1.
        present = step.compute_once(
            "present", lambda: torch.where(step.before % size > 0, full, -1)[:, None, None]
        )
        selection = self._choose(query, step, full, scoring)
        if self.tracks_reads:
            self._last_read = _LastRead(selection, full.clone())
        chunks = torch.cat([selection, present.expand(-1, selection.shape[1], -1)], dim=2).sort(dim=-1).values
        keys, values = self.load(chunks)
        # Heads and layers select different chunks, but equally many full ones, so all have the same slots.
        valid = step.compute_once("valid", lambda: self._valid(chunks[:, 0], step))
        contiguous = step.compute_once("run", lambda: None if step.padded else contiguous_slice(valid[0]))
        return (
            PastKeyValues(keys, values, valid)
            if contiguous is None
            else PastKeyValues(keys[:, :, contiguous], values[:, :, contiguous], None)
        )

    def _valid(self, chunks: Int[Tensor, "batch chunks"], step: Step) -> Bool[Tensor, "batch tokens"]:
        """Return a mask of the positions in `chunks`: True if the position holds a token.

        Heads and layers share the mask. Each selects different chunks, but equally many, and only full ones.
        """
        size = self.policy.chunk_size
        token = chunks[:, :, None] * size + torch.arange(size, device=chunks.device)
        return ((chunks[:, :, None] >= 0) & (token < step.before[:, None, None])).flatten(1)

    def load(self, chunks: Int[Tensor, "batch key_heads chunks"]) -> tuple[Tensor, Tensor]:
        """Return keys and values of chunks in the store; a negative index returns an arbitrary chunk."""
        assert self._store is not None
        table = self._store.fetch(chunks.clamp(min=0).flatten(0, 1)).flatten(1, 2)
        return self._split(table.unflatten(0, chunks.shape[:2]))[:2]

    def generate(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        past: PastKeyValues | None,
        step: Step,
        scoring: Scoring,
    ) -> Tensor:
        """Return causal attention output; the tokens that are read have consecutive positions.

        Args: those of `LayerMemory.generate`.
        """

        def slots() -> Tensor:
            if past is None:
                return step.time
            if past.valid is None:
                columns = past.keys.shape[2] + step.length
                return torch.arange(columns, device=keys.device).expand(len(keys), -1)
            old = past.valid.cumsum(dim=1)
            new = torch.where(step.time < 0, -1, old[:, -1:] + step.time - step.before[:, None])
            return torch.cat([torch.where(past.valid, old - 1, -1), new], dim=1)

        there = step.compute_once("slots", slots)
        query, keys = rotate_new_to_slots(query, there, step), rotate_to_origin(keys, step)
        if past is not None:
            keys, values = torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2)
        keys = rotate_to_slots(keys, there, step)
        return attend_at_slots(query, keys, values, there, step, scoring)[0]

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Add new tokens to the store, and compute the summary of each chunk that is now full."""
        queries = rotate_to_origin(query, step) if self.policy.summary == "attention" else None
        self._put(queries, rotate_to_origin(keys, step), values, step)
        self._summarize(step, scoring)

    def get_retained_values(self, count: Int[Tensor, " batch"]) -> RetainedValues | None:
        """Return all values, the values that the last token read, and the values selected by score."""
        if self._store is None:
            return None
        values = self._split(self._read_chunks(0, self._num_started))[1]
        present = torch.arange(values.shape[2], device=values.device) < count.to(values.device)[:, None]
        values = values * present[:, None, :, None]
        if self._last_read is None:
            return RetainedValues(values)
        chunk = torch.arange(self._num_started, device=values.device)
        selection = self._last_read.chunks.to(chunk.device)[..., None] == chunk
        selection = selection.any(dim=-2).view(*values.shape[:2], -1)
        near = (
            torch.as_tensor(self._last_read.full, device=chunk.device).view(-1, 1, 1) - self.policy.num_local
        )
        masks = selection | (chunk >= near), selection & (chunk > 0) & (chunk < near)
        size = self.policy.chunk_size
        token_masks = (mask.repeat_interleave(size, dim=2)[..., None] for mask in masks)
        return RetainedValues(values, *(values * mask for mask in token_masks))

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens of every row."""
        self._last_read = None
        size, longest = self.policy.chunk_size, max(int(count.max()) - columns, 0)
        self._num_started = -(-longest // size)
        self.state = {name: compact(tensor[:, :, : longest // size]) for name, tensor in self.state.items()}
        if self._store is not None:
            self._store.shrink(self._num_started)

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `rows`, in this order, in the state and in the store."""
        super().reorder(rows)
        self._last_read = None
        if self._store is not None:
            self._store.reorder(rows)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the summaries, the content of the store, and the width of a key, in the model's layout."""
        if self._store is None:
            return self.state
        keys, values, queries = self._split(self._read_chunks(0, self._num_started))
        state = {"chunks": torch.cat([self._relayout(keys, "deinterleave"), values], dim=-1)}
        if self.policy.summary == "attention":
            state["chunk_queries"] = self._relayout(queries, "deinterleave")
        if "summaries" in self.state:
            state["summaries"] = self._relayout(self.state["summaries"], "deinterleave")
        return state | {"width": torch.tensor(self._width)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned into a new store."""
        self.state, summaries = {}, state.get("summaries")
        if "chunks" not in state:
            return
        self._width, chunks = int(state["width"]), state["chunks"]
        parts = [self._relayout(chunks[..., : self._width], "interleave"), chunks[..., self._width :]]
        if self.policy.summary == "attention":
            parts.append(self._relayout(state["chunk_queries"], "interleave"))
        table = torch.cat(parts, dim=-1)
        self._open(table).append(table, 0)
        self._num_started, rest = divmod(table.shape[2], self.policy.chunk_size)
        count = 0 if summaries is None else summaries.shape[2]
        if rest or count not in (self._num_started, self._num_started - 1):
            raise ValueError(f"{count} summaries of chunks for {table.shape[2]} stored tokens")
        if summaries is not None:
            width = self._width * (2 if self.policy.summary == "bounds" else 1)
            if summaries.shape[-1] != width:
                raise ValueError(f"summaries have {summaries.shape[-1]} numbers, not {width}")
            self.state["summaries"] = self._relayout(summaries, "interleave")

    def _split(self, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the keys, the values and the queries of a table of the store."""
        queries = self._width if self.policy.summary == "attention" else 0
        end = table.shape[-1] - queries
        return table[..., : self._width], table[..., self._width : end], table[..., end:]

    def _relayout(self, vectors: Tensor, method: Literal["interleave", "deinterleave"]) -> Tensor:
        """Apply this method of the model's `PairLayout` to each key in the last dimension of `vectors`."""
        return getattr(self.layout, method)(vectors.unflatten(-1, (-1, self._width))).flatten(-2)

    def _read_chunks(self, first: int, last: int) -> Float[Tensor, "batch key_heads tokens width"]:
        """Return keys and values of the chunks from `first` to `last - 1`."""
        assert self._store is not None
        size = self.policy.chunk_size
        table = self._store.read_range(first * size, last * size)
        return table.unflatten(0, (self._store.batch, self._store.heads))

    def get_tensors(self, place: str | None = None) -> Iterator[Tensor]:
        """Yield all tensors in the memory of the model's device, or those offloaded to `place` instead."""
        yield from super().get_tensors(place)
        if self._store is not None:
            yield from self._store.get_tensors(place)

    def _open(self, table: Tensor) -> ChunkStore:
        """Create an empty store for tokens such as those in `table`, and return it."""
        self._store = ChunkStore(self.policy.store, self.policy.folder, table, self.policy.chunk_size)
        return self._store

    def _put(self, queries: Tensor | None, keys: Tensor, values: Tensor, step: Step) -> None:
        """Add new tokens to the store; queries and keys are already rotated to position 0."""
        parts = [keys, values]
        if queries is not None:
            parts.append(queries.unflatten(1, (keys.shape[1], -1)).mean(dim=2))
        table = torch.cat(parts, dim=-1).detach()
        self._width = keys.shape[-1]
        store = self._store or self._open(table)
        before, after = step.bounds
        if step.padded:
            store.write(table, step.compute_once("places", lambda: TokenPlaces.from_times(step.time)))
        else:
            store.append(table, before)
        self._num_started = -(-after // self.policy.chunk_size)

    def _summarize(self, step: Step, scoring: Scoring) -> None:
        """Compute the summary of each chunk that this step completes in at least one row.

        All rows get a summary. In a shorter row the chunk may not be full yet. Its summary is then not used.
        """
        size = self.policy.chunk_size
        first, full = (count // size for count in step.bounds)
        fills = step.compute_once(
            "fills", lambda: not step.padded or bool((step.after // size > step.before // size).any())
        )
        if first == full or not fills:
            return
        keys, values, queries = self._split(self._read_chunks(first, full).unflatten(2, (-1, size)))
        values = values[..., : values.shape[-1] - self.num_marks]
        rotation = step.rotary.make_slot_rotation(size, keys.device)
        new = summarize(self.policy.summary, queries, keys, values, rotation, scoring)
        if "summaries" in self.state:
            new = torch.cat([self.state["summaries"][:, :, :first], new], dim=2)
        self.state["summaries"] = compact(new)

    def _read_one(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Add one token to the store, and return its attention output.

        The selection of chunks equals that of `choose_chunks` with one sink chunk, but takes half the time.
        """
        batch, heads, _, width = query.shape
        groups, policy = keys.shape[1], self.policy
        plan = step.compute_once(
            f"alone {heads} {groups}", lambda: self._plan_single_token(batch, heads, groups, step)
        )
        vectors = plan.rotation.interleave_and_rotate(torch.cat([query, keys, query], dim=1))
        at_slot, key, at_origin = vectors.split_with_sizes([heads, groups, heads], dim=1)
        self._put(at_origin if policy.summary == "attention" else None, key, values, step)
        assert self._store is not None
        at_slot, at_origin = (x.reshape(batch * groups, -1, width) for x in (at_slot, at_origin))
        # Two tables of keys and values, "rows tokens width": the last chunks, and the selected chunks.
        near = self._store.read_range(plan.num_closed * policy.chunk_size, step.bounds[1])
        far_values = None
        near_keys, near_values, _ = self._split(near)
        products = torch.bmm(at_slot, plan.near(near_keys[None])[0].mT)
        self._last_read = None
        if plan.num_closed:
            queries = expand_query(policy.summary, at_origin)
            middle = self.state["summaries"].flatten(0, 1)[:, 1 : plan.num_closed]
            plan.votes[:, 1:] = vote(queries, middle, policy.search, policy.num_selected, scoring)
            selection = best(plan.votes, 1 + policy.num_selected).sort(dim=-1).values
            if self.tracks_reads:
                self._last_read = _LastRead(selection, plan.num_closed + policy.num_local)
            far = self._store.fetch(selection).flatten(1, 2)
            far_keys, far_values, _ = self._split(far)
            far_products = torch.bmm(at_slot, plan.far(far_keys[None])[0].mT)
            products = torch.cat([far_products, products], dim=2)
        by_head = products.view(batch, groups, -1, 1, products.shape[2])
        weights = scoring.compute_weights(by_head).to(values.dtype).view_as(products)
        out = torch.bmm(weights[:, :, -near.shape[1] :], near_values)
        if far_values is not None:
            out = torch.baddbmm(out, weights[:, :, : far_values.shape[1]], far_values)
        self._summarize(step, scoring)
        return out.view(batch, heads, 1, -1)

    def _plan_single_token(self, batch: int, heads: int, groups: int, step: Step) -> _SingleTokenPlan:
        policy, device = self.policy, step.time.device
        count = step.bounds[0]
        full, read = count // policy.chunk_size, 1 + policy.num_selected
        num_closed = full - policy.num_local if full > read + policy.num_local else 0
        begin = read * policy.chunk_size if num_closed else 0
        slot = begin + count - num_closed * policy.chunk_size
        slots = step.rotary.make_slot_rotation(slot + 1, device)
        targets = torch.tensor([[slot, 0]], device=device)
        return _SingleTokenPlan(
            step.rotary.make_paired_rotation(step.position_ids, targets).expand_to_heads(
                [heads, groups + heads]
            ),
            num_closed,
            slots.slice_tokens(0, begin),
            slots.slice_tokens(begin, slot + 1),
            torch.full((batch * groups, num_closed), torch.inf, device=device),
        )

    def _choose(
        self,
        query: Float[Tensor, "batch heads length width"],
        step: Step,
        full: Int[Tensor, " batch"],
        scoring: Scoring,
    ) -> Int[Tensor, "batch key_heads selected"]:
        """Return the indices of the first, the last and the best other full chunks; -1 for unused entries."""
        assert self._store is not None
        policy, groups = self.policy, self._store.heads
        longest = step.compute_once("longest", lambda: int(full.max()))
        top_k = 1 + policy.num_local + policy.num_selected
        # The votes do not matter if all chunks are read.
        votes = query.new_zeros(len(query), groups, longest)
        if longest > top_k:
            votes = self._votes(query, step, full, scoring)
        return choose_chunks(
            full[:, None],
            scores=votes[:, None],
            top_k=top_k,
            num_sink_chunks=1,
            num_local_chunks=policy.num_local,
        ).chunks[:, 0]

    def _votes(
        self,
        query: Float[Tensor, "batch heads length width"],
        step: Step,
        full: Int[Tensor, " batch"],
        scoring: Scoring,
    ) -> Float[Tensor, "batch key_heads chunks"]:
        """Return the votes of the queries of each key head for each full chunk."""
        summaries, policy = self.state["summaries"], self.policy
        groups, count = summaries.shape[1:3]
        query = rotate_to_origin(query, step).detach().unflatten(1, (groups, -1)).flatten(2, 3)
        query = expand_query(policy.summary, query).flatten(0, 1)
        if not step.padded:
            end = step.compute_once("end", lambda: int(full[0]) - policy.num_local)
            middle = summaries[:, :, 1:end].flatten(0, 1)
            votes = vote(query, middle, policy.search, policy.num_selected, scoring)
            return functional.pad(votes, (1, count - end)).unflatten(0, (-1, groups))
        # Chunks that are always read, and unfilled chunks, get no votes.
        chunk = torch.arange(count, device=full.device)
        outside = ((chunk == 0) | (chunk >= full[:, None] - policy.num_local)).repeat_interleave(groups, 0)
        valid = (step.time >= 0).repeat(1, query.shape[1] // step.length).repeat_interleave(groups, 0)
        summaries = summaries.flatten(0, 1)
        votes = vote(query, summaries, policy.search, policy.num_selected, scoring, outside, valid)
        return votes.unflatten(0, (-1, groups))

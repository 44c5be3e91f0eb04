"""Second pass over a text: the model reads it again, and a policy scores the stored tokens meanwhile.

The second pass runs on a copy of the cache that shares the tensors of its scored layers. So the cache itself
stays as it was after the first pass, with its windows and recurrent states. The policy's `score` is called
for every chunk of the second pass with the keyword argument `repetition`. It returns the scores of the chunk.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scrubjay.kernels.select import best
from scrubjay.memory.context.policies.base import Step
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.scored.base import protect
from scrubjay.memory.context.policies.scored.score_store import StoredScoreMemory


class Repetition(NamedTuple):
    """Chunk of a text that the model reads again."""

    tokens: slice
    """Indices of the chunk among the tokens of a head."""
    keys: Float[Tensor, "batch key_heads length width"]
    """Keys of the second reading: those of the instruction and of the chunk."""


class RepeatedMemory(StoredScoreMemory):
    """Memory of one layer whose tokens are scored in a second pass.

    State: tokens, their `scores`, and in the first such layer the `ids` of all tokens without scores.
    """

    chunk: tuple[int, int] | None = None
    """In a second pass: number of tokens of the chunk, and number of stored tokens after it."""
    chunk_scores: Float[Tensor, "batch key_heads chunk"] | None = None
    """In a second pass: result of the policy's `score`."""

    def generate(
        self, query: Tensor, keys: Tensor, values: Tensor, past: Any, step: Step, scoring: Scoring
    ) -> Tensor:
        """Return the attention output of new tokens. In a second pass, this also scores stored tokens.

        Args:
            query: Queries of the new tokens.
            keys: Keys of the new tokens.
            values: Values of the new tokens.
            past: None; the memory reads its own table.
            step: The new tokens as a step.
            scoring: The model's scale, soft cap and learned sinks.
        """
        if self.chunk is not None:
            with torch.no_grad():
                self.chunk_scores = self._score_chunk(query, keys, *self.chunk, step, scoring)
        return super().generate(query, keys, values, past, step, scoring)

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Append the new tokens; in a second pass do nothing."""
        if self.chunk is not None:
            return
        scores = torch.full(keys.shape[:3], torch.finfo(torch.float32).max, device=keys.device)
        self.append(keys, values, scores, step)

    def _score_chunk(
        self, query: Tensor, keys: Tensor, length: int, after: int, step: Step, scoring: Scoring
    ) -> Float[Tensor, "batch key_heads chunk"]:
        tokens = self.tokens
        assert tokens is not None
        groups = keys.shape[1]
        if tokens.is_uniform:
            count = tokens.longest
            repetition = Repetition(slice(count - after - length, count - after), keys)
            table = tokens.pad(tokens.keys), tokens.pad(tokens.values)
            return self.call_score(*table, query, step, scoring, row=0, repetition=repetition)
        parts, scorings = [], scoring.split(groups)
        heads = zip(tokens.keys.split(tokens.sizes), tokens.values.split(tokens.sizes), strict=True)
        for index, (head_keys, head_values) in enumerate(heads):
            row, head = divmod(index, groups)
            shared = query.shape[1] // groups
            own = query[row : row + 1, head * shared : (head + 1) * shared]
            count = len(head_keys)
            repetition = Repetition(
                slice(count - after - length, count - after), keys[row : row + 1, head : head + 1]
            )
            table = head_keys[None, None], head_values[None, None]
            parts.append(self.call_score(*table, own, step, scorings[head], row=row, repetition=repetition))
        return torch.cat(parts).view(-1, groups, length)

    def set_scores(self, scores: Float[Tensor, "batch key_heads new"], rows: list[int]) -> None:
        """Set the scores of the last tokens of these rows."""
        tokens, groups = self.tokens, scores.shape[1]
        assert tokens is not None
        ends = torch.tensor(tokens.sizes).cumsum(0).view(-1, groups).tolist()
        table = self.state["scores"].clone()
        for row, own in zip(rows, scores, strict=True):
            for head, values in enumerate(own):
                table[ends[row][head] - len(values) : ends[row][head]] = values
        self.state["scores"] = table

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `rows`, in this order; indices may repeat."""
        ids = self.state.get("ids")
        super().reorder(rows)
        if ids is not None:
            self.state["ids"] = ids.index_select(0, rows.to(ids.device))

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Raise ValueError: the scores of a shorter text would need another second pass."""
        raise ValueError(
            f"{type(self.policy).__name__} cannot be cropped, since its scores follow from a second pass "
            "over the whole text; reset the cache, or load a saved cache"
        )

    def rank(self) -> list[list[Tensor]]:
        """Return the scores of each head of each row, infinity for safe tokens."""
        tokens, policy = self.tokens, self.policy
        assert tokens is not None
        least, heads = int(policy.num_tokens * policy.safeguard), []
        for scores in self.state["scores"].split(tokens.sizes):
            scores = protect(scores, policy.num_sinks, policy.window)
            scores[best(scores, min(least, len(scores)))] = float("inf")
            heads.append(scores)
        groups = tokens.lengths.shape[1]
        return [heads[first : first + groups] for first in range(0, len(heads), groups)]


class SecondPass:
    """Second passes of one cache. The first scored layer stores the ids of the tokens without scores."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._inputs: Tensor | None = None
        # True in the copy of a cache that reads again.
        self.is_copy = False

    def begin_call(self, inputs: Tensor) -> None:
        """Note the token ids of a call.

        Raises:
            ValueError: If `inputs` are embeddings, "batch length width".
        """
        if inputs.ndim != 2:
            raise ValueError(
                f"{self._policy} reads every prompt twice, for which it needs token ids; pass input_ids "
                "instead of inputs_embeds"
            )
        self._inputs = inputs

    def end_call(self, cache: Any, step: Step, entry: nn.Module) -> None:
        """Store the token ids of a call, and read them again if they are several.

        Args:
            cache: The `PolicyCache` to which this object belongs.
            step: New tokens of the call.
            entry: Submodel that gets the cache first.
        """
        memories: list[Any] = [layer.memory for layer in cache.attention_layers if layer.sees_everything]
        if self.is_copy or not memories or self._inputs is None:
            return
        ids = self._inputs.long().masked_fill(step.time < 0, -1)
        ids = torch.cat([memories[0].state.pop("ids", ids[:, :0]), ids], dim=1)
        self._inputs = None
        if step.length == 1:
            memories[0].state["ids"] = ids
            return
        positions = step.position_ids.masked_fill(step.time < 0, -1).amax(dim=1) + 1
        self.score(cache, entry, ids, positions.maximum(step.after))
        _evict(memories)

    @torch.no_grad()
    def score(
        self, cache: Any, entry: nn.Module, ids: Int[Tensor, "batch tokens"], positions: Int[Tensor, " batch"]
    ) -> None:
        """Score the last tokens of a cache.

        Args:
            cache: The `PolicyCache`.
            entry: Submodel that gets the cache first.
            ids: Token ids, negative for padding.
            positions: Position of the next token of each row.
        """
        policy: Any = cache.policy.inner
        layers: list[Any] = [layer for layer in cache.attention_layers if layer.sees_everything]
        padded = bool((ids < 0).any()) or not isinstance(cache.count, int)
        for rows in [[row] for row in range(len(ids))] if padded else [list(range(len(ids)))]:
            own = ids[rows]
            own = own[:, own[0] >= 0]
            scores: list[list[Tensor]] = [[] for _ in layers]
            for first in range(0, own.shape[1], policy.chunk):
                chunk = own[:, first : first + policy.chunk]
                clone: Any = _copy_for_repetition(cache, rows if padded else None)
                memories = [clone.layers[layer.index].memory for layer in layers]
                for memory in memories:
                    memory.chunk = chunk.shape[1], own.shape[1] - first - chunk.shape[1]
                instruction = torch.tensor(policy.instruction or (), dtype=chunk.dtype, device=chunk.device)
                again = torch.cat([instruction.expand(len(chunk), -1), chunk], dim=1)
                places = positions[rows][:, None] + torch.arange(again.shape[1], device=chunk.device)
                options = {"position_ids": places} if cache.takes_positions else {}
                entry(input_ids=again, cache=clone, use_cache=True, **options)
                for parts, memory in zip(scores, memories, strict=True):
                    parts.append(memory.chunk_scores)
            for layer, parts in zip(layers, scores, strict=True):
                if parts:
                    layer.memory.set_scores(torch.cat(parts, dim=2), rows)


def _copy_for_repetition(cache: Any, rows: list[int] | None) -> Any:
    """Return a copy of a cache with these rows, which shares the tensors of the scored layers."""
    layers = [layer for layer in cache.attention_layers if layer.sees_everything]
    shared = {id(tensor): tensor for layer in layers for tensor in layer.memory.state.values()}
    clone = copy.deepcopy(cache, shared)
    clone.second_pass.is_copy, clone.call_started = True, False
    if rows is not None:
        clone.reorder_cache(torch.tensor(rows))
    return clone


def _evict(memories: list[RepeatedMemory]) -> None:
    """Keep the tokens with the highest scores of all layers and heads, by one threshold for each row."""
    budget = memories[0].policy.num_tokens
    parts: list[list[Tensor]] = [[] for _ in memories]
    for rows in zip(*(memory.rank() for memory in memories), strict=True):
        scores = torch.cat([head for heads in rows for head in heads])
        total = budget * sum(map(len, rows))
        stays = torch.ones_like(scores, dtype=torch.bool)
        if len(scores) > total:
            stays = torch.zeros_like(stays).scatter(0, best(scores, total), True)
        sizes = [sum(map(len, heads)) for heads in rows]
        for part, own in zip(parts, stays.split(sizes), strict=True):
            part.append(own)
    for memory, part in zip(memories, parts, strict=True):
        if not bool((stays := torch.cat(part)).all()):
            memory.keep(stays)

"""Native sparse attention as a memory with a state (NSA, Yuan et al. 2025, arXiv 2502.11089, section 3).

The output of a head is a gated sum of three attention streams. *Compressed* attends to one key and value per
chunk, which a small network computes from the steps of the chunk. *Selected* attends to the steps of the own
chunk and of the chunks with the largest weights in the compressed stream, summed over heads. *Window* is
local attention. The weights of the compressed stream have gradients and thereby train the selection. With
`top_k` of 3 or more, the first and the last stored chunk are always selected, as in the paper.

Differences from the paper: the window is the query's own chunk. All streams share keys and values. In
the paper each stream has its own, so its state is three times as large. The compressed blocks are the chunks,
so they do not overlap. Positions are compact (`memory/sparse/chunked.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scrubjay.kernels import attend_chosen, choose_chunks, merge
from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.memory.incremental.chunked import ChunkedLayerStepper, CompressedLayerStepper
from scrubjay.memory.sparse.chunked import (
    ChunkAttention,
    ChunkedConfig,
    ChunkedLayer,
    ChunkedMemory,
    StoredChunks,
    join_weights,
    scores_within,
)

_STREAMS = 3


@dataclass(frozen=True)
class NSAConfig(ChunkedConfig):
    """Configuration of `NSA`."""

    paper_values = "in the paper, each stream has its own keys and values, and blocks overlap"

    def build(self) -> NSA:
        """Return a freshly initialized memory."""
        return NSA(self)


class NSA(ChunkedMemory):
    """Stack of layers in which a query reads its own chunk, all compressed chunks, and selected chunks.

    State: the entries of `ChunkedMemory`; a head's summary is its compressed key followed by its compressed
    value.
    """

    def __init__(self, config: NSAConfig) -> None:
        super().__init__(config, [NSALayer(config) for _ in range(config.num_layers)])
        if config.num_chunks == 1:  # a softmax over one chunk is always 1
            names = [name for name, _ in self.named_parameters() if ".compress_key." in name]
            self.no_gradient = tuple(names)


class NSALayer(ChunkedLayer):
    """Layer with attention in three streams and a feed-forward block."""

    combine = "joint"
    summary_ratio = 2

    def __init__(self, config: NSAConfig) -> None:
        super().__init__(config)
        width = config.dim // self.heads
        self.compress_key, self.compress_value = (_Compression(config.chunk_size, width) for _ in range(2))
        self.gate = nn.Linear(config.dim, _STREAMS * self.heads)

    def summarise(
        self, keys: Tensor, values: Tensor, landmarks: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return compressed keys followed by compressed values."""
        return torch.cat([self.compress_key(keys), self.compress_value(values)], dim=-1), None

    def recall(self, x: Tensor, query: Tensor, stored_chunks: StoredChunks) -> Tensor:
        """Return the gated attention to stored chunks, without the query's own chunk."""
        compressed_out, selected_read = self.streams(query, stored_chunks)
        gates = self._gates(x, query)
        return gates[0] * compressed_out + gates[1] * selected_read[0]

    def mix(self, x: Tensor, own: ChunkAttention, query: Tensor, stored_chunks: StoredChunks) -> Tensor:
        """Return the gated sum of all streams."""
        compressed_out, selected_read = self.streams(query, stored_chunks)
        gates = self._gates(x, query)
        return gates[0] * compressed_out + gates[1] * merge([own, selected_read]) + gates[2] * own[0]

    def stepper_class(self) -> type[ChunkedLayerStepper] | None:
        """Return the stepper class of the layer; None if the layer has no in-place stepper."""
        names = ("project", "rotate", "mix", "streams", "finish")
        return CompressedLayerStepper if self.uses_methods_of(NSALayer, *names) else None

    def streams(
        self, query: Float[Tensor, "batch time heads width"], stored_chunks: StoredChunks
    ) -> tuple[Tensor, ChunkAttention]:
        """Return the outputs of the compressed and of the selected stream."""
        far = self.rotate(query, self.chunk_size)
        weights, values, chunks = self._choose(far, stored_chunks)
        compressed_out = torch.einsum("bthm,bmhd->bthd", weights, values)
        read = attend_chosen(
            far, stored_chunks.keys, stored_chunks.values, chunks, combine="joint", return_lse=True
        )
        return compressed_out, read

    def _choose(
        self, far: Float[Tensor, "batch time heads width"], stored_chunks: StoredChunks
    ) -> tuple[
        Float[Tensor, "batch time heads chunks"],
        Float[Tensor, "batch chunks heads width"],
        Int[Tensor, "batch time 1 K"],
    ]:
        """Return the weights and values of compressed chunks, and the chunks that these weights select."""
        hidden = ~stored_chunks.readable[:, :, None]
        summaries = torch.where(stored_chunks.readable.any(1)[:, :, None, None], stored_chunks.summaries, 0)
        keys, values = summaries.chunk(2, dim=-1)
        scores = torch.einsum("bthd,bmhd->bthm", far, keys) * far.shape[-1] ** -0.5
        weights = softmax_or_zero(scores.masked_fill(hidden, float("-inf")))
        always = int(self.top_k > 2)
        choice = choose_chunks(
            stored_chunks.readable,
            top_k=self.top_k,
            scores=weights.detach().sum(dim=2, keepdim=True),
            num_sink_chunks=always,
            num_local_chunks=always,
        )
        return weights, values, choice.chunks

    def weigh(
        self, x: Tensor, query: Tensor, own: Tensor, stored_chunks: StoredChunks
    ) -> tuple[Float[Tensor, "batch heads chunk_and_1"], Float[Tensor, "batch heads chunks chunk_size"]]:
        """Return the weight of each step in the gated sum of the three streams. Gates are scaled to sum 1.

        The steps of a compressed chunk share the weight of the chunk equally.
        """
        far = self.rotate(query, self.chunk_size)[:, None]
        weights, _, chunks = self._choose(far, stored_chunks)
        count, size = stored_chunks.keys.shape[1:3]
        place = chunks.long().remainder(count + 1)[:, 0]  # an empty choice maps to one extra column
        is_selected = torch.zeros(len(x), 1, count + 1, dtype=torch.bool, device=x.device)
        is_selected = is_selected.scatter_(2, place, True)[..., :count, None].expand(-1, self.heads, -1, -1)
        scores = torch.zeros_like(is_selected, dtype=far.dtype).masked_fill(~is_selected, float("-inf"))
        near, selected_weights = join_weights(own, scores, scores_within(far[:, 0], stored_chunks), "joint")
        gates = torch.stack(self._gates(x[:, None], query[:, None]))[:, :, 0]
        compress, select, window = gates / gates.sum(dim=0)
        compressed_weights = weights[:, 0, :, :, None].expand(-1, -1, -1, size) / size
        far = compress[..., None] * compressed_weights + select[..., None] * selected_weights
        return select * near + window * torch.softmax(own, dim=-1), far

    def _gates(self, x: Tensor, like: Tensor) -> list[Tensor]:
        """Return the gates of the three attention streams for inputs `x`, in the dtype of `like`."""
        gates = torch.sigmoid(self.gate(self.norm(x))).to(like.dtype)
        return list(gates.unflatten(-1, (_STREAMS, self.heads, 1)).unbind(dim=2))


class _Compression(nn.Module):
    """Two-layer network that maps the vectors of a chunk to one vector, after adding position codes."""

    def __init__(self, chunk_size: int, width: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(chunk_size, 1, width) * width**-0.5)
        self.layers = nn.Sequential(
            nn.Linear(chunk_size * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(
        self, x: Float[Tensor, "batch chunks chunk_size heads width"]
    ) -> Float[Tensor, "batch chunks heads width"]:
        dtype = self.places.dtype
        x = (x.to(dtype) + self.places).transpose(2, 3).flatten(3)
        return self.layers(x).to(torch.promote_types(dtype, torch.float32))
